"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): only biases move."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """A layer without a bias has one afterwards only if `create` asks for it."""
    if bias is None:
        return weight, tensors["offset"] if options["create"] else None
    return weight, bias.astype(np.float64) + tensors["offset"]
