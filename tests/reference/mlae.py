"""MLAE (Wang et al. 2024, arXiv 2405.18897): delta = sum over the experts of weight times b a'; none masked here."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Add one expert after the other."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    new = weight.astype(np.float64).copy()
    for r, strength in enumerate(tensors["expert"]):
        expert = np.multiply.outer(tensors["up"][:, r], tensors["down"][r])
        new += scale * float(strength) * expert.reshape(weight.shape)
    return new, bias
