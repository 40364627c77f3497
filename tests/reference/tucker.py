"""Tucker-2 update: delta[o, i, j] = sum over a, b of U[o, a] G[a, b, j] V[b, i], j a kernel position."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Transform the core one kernel position at a time, U G_j V."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    new = weight.astype(np.float64).reshape(weight.shape[0], weight.shape[1], -1).copy()
    for position in range(new.shape[2]):
        core = tensors["core"][:, :, position].astype(np.float64)
        new[:, :, position] += scale * (tensors["up"] @ core @ tensors["down"])
    return new.reshape(weight.shape), bias
