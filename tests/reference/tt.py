"""LoRA-Edge (arXiv 2511.03765): delta[o, i, p, ...] = G1[o] G2[i] G3[p] ..., a product of one slice of each core."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Multiply the slices entry by entry, from the left; axes of size one have no core."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    new = weight.astype(np.float64).copy()
    for o, i, *place in np.ndindex(*weight.shape):
        row = tensors["up"][o].astype(np.float64) @ tensors["core_in"][:, i, :]
        for axis, index in enumerate(place, start=1):
            if f"core_axis_{axis}" in tensors:
                row = row @ tensors[f"core_axis_{axis}"][:, index, :]
        new[(o, i, *place)] += scale * float(row.item())
    return new, bias
