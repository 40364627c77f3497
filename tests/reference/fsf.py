"""FSF (Chen et al. 2025, arXiv 2403.00269): W' = W + a dD, a the sparse code of W in an orthonormal dictionary."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """One slice at a time: a kernel, or a square of channels where the kernel has one position."""
    old = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    new = old.copy()
    side = 1
    if old.shape[2] == 1:
        common = math.gcd(old.shape[0], old.shape[1])
        side = max(number for number in range(1, common + 1) if common % number == 0 and number <= options["block"])
    for out in range(0, old.shape[0], side):
        for inner in range(0, old.shape[1], side):
            square = (slice(out, out + side), slice(inner, inner + side))
            step = _moved(old[square].ravel(), inner // side, tensors, options)
            new[square] = old[square] + step.reshape(old[square].shape)
    return new.reshape(weight.shape), bias


def _moved(kernel: np.ndarray, inner: int, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> np.ndarray:
    total = np.zeros(kernel.shape)
    for number, atom in enumerate(tensors["dictionary"]):
        projection = float(sum(kernel * atom))
        code = np.sign(projection) * max(abs(projection) - options["sparsity"], 0.0)
        if options["expansion"] == 0:
            total += code * tensors["delta"][number]
            continue
        for extra in range(options["expansion"]):
            total += code * float(tensors["mixing"][number, extra, inner]) * tensors["delta"][number, extra]
    return total
