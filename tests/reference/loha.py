"""LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098, prop. 1): delta = (X1 Y1') * (X2 Y2'), elementwise."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Multiply the two low-rank matrices entry by entry."""
    scale = (1.0 if options["alpha"] is None else options["alpha"]) / options["rank"]
    columns = int(np.prod(weight.shape[1:]))
    new = weight.astype(np.float64).reshape(weight.shape[0], columns).copy()
    for out in range(weight.shape[0]):
        for column in range(columns):
            first = sum(a * b for a, b in zip(tensors["up_first"][out], tensors["down_first"][:, column], strict=True))
            second = sum(
                a * b for a, b in zip(tensors["up_second"][out], tensors["down_second"][:, column], strict=True)
            )
            new[out, column] += scale * float(first) * float(second)
    return new.reshape(weight.shape), bias
