"""CPD of an update: delta[o, i, j] = sum over r of A[o, r] B[i, r] C[j, r], j a kernel position."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sum the rank-one tensors one by one."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    new = weight.astype(np.float64).reshape(weight.shape[0], weight.shape[1], -1).copy()
    for r in range(tensors["up"].shape[1]):
        plane = np.multiply.outer(tensors["down"][r].astype(np.float64), tensors["spatial"][r])
        new += scale * np.multiply.outer(tensors["up"][:, r].astype(np.float64), plane)
    return new.reshape(weight.shape), bias
