"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512, eq. 3): W' = W + P Lambda Q."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Multiply the three factors out."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    product = tensors["up"] @ np.diag(tensors["values"].astype(np.float64)) @ tensors["down"]
    return weight.astype(np.float64) + scale * product.reshape(weight.shape), bias
