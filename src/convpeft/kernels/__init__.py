"""How an adapted layer is computed while it is trained: the same function at another cost."""

from convpeft.kernels.running import Kernel, run_cheaply

__all__ = ["Kernel", "run_cheaply"]
