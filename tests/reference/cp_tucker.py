"""TKD-CPD of an update: delta[o, i, j] = sum U[o, a] G[a, b, j] V[i, b], G[a, b, j] = sum A[a, r] B[b, r] C[j, r]."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Build the core term by term, then transform it one kernel position at a time, U G_j V'."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    outputs, inputs = tensors["up"].astype(np.float64), tensors["down"].astype(np.float64)
    core = np.zeros((outputs.shape[1], inputs.shape[0], tensors["spatial"].shape[1]))
    for a, b, j in np.ndindex(*core.shape):
        for r in range(tensors["spatial"].shape[0]):
            core[a, b, j] += tensors["core_up"][a, r] * tensors["core_down"][r, b] * tensors["spatial"][r, j]
    new = weight.astype(np.float64).reshape(weight.shape[0], weight.shape[1], -1).copy()
    for position in range(new.shape[2]):
        new[:, :, position] += scale * (outputs @ core[:, :, position] @ inputs)
    return new.reshape(weight.shape), bias
