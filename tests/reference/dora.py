"""DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5): W' = m V / |V|, V = W + B A, m = gain |W|, filter by filter."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn each filter into the direction of V, as long as the gain times the old filter; a zero filter keeps V."""
    scale = 1.0
    if options["alpha"] is not None:
        scale = options["alpha"] / (options["rank"] ** 0.5 if options["rslora"] else options["rank"])
    new = np.zeros(weight.shape, dtype=np.float64)
    for out in range(weight.shape[0]):
        old = weight[out].astype(np.float64)
        direction = old + scale * (tensors["up"][out].astype(np.float64) @ tensors["down"]).reshape(old.shape)
        length = np.linalg.norm(direction.ravel())
        unit = direction / length * np.linalg.norm(old.ravel()) if length > 0 else direction
        new[out] = tensors["gain"][out] * unit
    return new, bias
