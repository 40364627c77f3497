"""LoKr (Yeh et al. 2024, arXiv 2309.14859): delta = W1 (x) W2, entry ((a, b), (c, d), j) = W1[a, c] W2[b, d, j]."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Find both factors' entries for each entry of the weight; the scale is 1 where no factor is low-rank."""
    factors = {}
    for name in ("first", "second"):
        whole = name in tensors
        factors[name] = tensors[name] if whole else tensors[f"up_{name}"] @ tensors[f"down_{name}"]
    scale = 1.0
    if options["alpha"] is not None and not ("first" in tensors and "second" in tensors):
        scale = options["alpha"] / options["rank"]
    rows, columns = factors["second"].shape[0], weight.shape[1] // factors["first"].shape[1]
    kernel = factors["second"].reshape(rows, columns, -1).astype(np.float64)
    new = weight.astype(np.float64).reshape(*weight.shape[:2], -1).copy()
    for o in range(new.shape[0]):
        for i in range(new.shape[1]):
            gain = factors["first"][o // rows, i // columns]
            new[o, i] += scale * gain * kernel[o % rows, i % columns]
    return new.reshape(weight.shape), bias
