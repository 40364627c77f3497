"""Linear probe: the head is whatever was trained, nothing else moves."""

from reference.full import new_tensors

__all__ = ["new_tensors"]
