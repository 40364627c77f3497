"""How an adapted layer is computed while it is trained: the same function at another cost."""

from convpeft.kernels.computing import KERNELS, LAYOUTS, Computing, KernelPlan
from convpeft.kernels.fused import has_triton
from convpeft.kernels.rebuilt import Pull, PullsBack
from convpeft.kernels.running import (
    Product,
    can_rebuild,
    find_cheaper,
    in_checkpoint,
    is_traced,
    run_frozen,
    run_rebuilt,
)

__all__ = [
    "KERNELS",
    "LAYOUTS",
    "Computing",
    "KernelPlan",
    "Product",
    "Pull",
    "PullsBack",
    "can_rebuild",
    "find_cheaper",
    "has_triton",
    "in_checkpoint",
    "is_traced",
    "run_frozen",
    "run_rebuilt",
]
