"""LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): LoRA's sum, with A drawn once and never trained."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sum one outer product a rank, with the sum over ranks outermost."""
    scale = 1.0
    if options["alpha"] is not None:
        scale = options["alpha"] / (options["rank"] ** 0.5 if options["rslora"] else options["rank"])
    new = weight.astype(np.float64).reshape(weight.shape[0], -1).copy()
    for r in range(tensors["down"].shape[0]):
        new += scale * np.outer(tensors["up"][:, r], tensors["down"][r])
    return new.reshape(weight.shape), bias
