"""Parallel residual adapter (Rebuffi et al. 2018, arXiv 1803.10082, eq. 4): 1x1 weights join the kernel's centre."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Add the 1x1 weights at the centre tap, (size - 1) // 2 along each axis."""
    new = weight.astype(np.float64).copy()
    centre = tuple((size - 1) // 2 for size in weight.shape[2:])
    for out in range(weight.shape[0]):
        for inside in range(weight.shape[1]):
            new[(out, inside, *centre)] += tensors["adapter"][out, inside]
    return new, bias
