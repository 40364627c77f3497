"""TSA (Li et al. 2022, arXiv 2107.00358): y = conv(x) + alpha x at the centre tap; classifier W (I + offset)."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pass the classifier through the map, or add the adapter kernel by kernel."""
    old = weight.astype(np.float64)
    if "offset" in tensors:
        beta = np.eye(weight.shape[1]) + tensors["offset"]
        return np.stack([row.reshape(1, -1) @ beta for row in old]).reshape(weight.shape), bias
    new = old.copy()
    centre = tuple((size - 1) // 2 for size in weight.shape[2:])
    per_group = weight.shape[0] // options["groups"]
    met = 0
    for out in range(weight.shape[0]):
        for inner in range(weight.shape[1]):
            if options["form"] == "matrix":
                new[(out, inner, *centre)] += tensors["adapter"][out, inner]
            elif out % per_group == inner:
                new[(out, inner, *centre)] += tensors["adapter"][met]
                met += 1
    return new, bias
