"""How an adapted layer is computed while it is trained: the same function at another cost."""

from convpeft.kernels.running import run_cheaply

__all__ = ["run_cheaply"]
