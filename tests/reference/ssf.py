"""SSF (Lian et al. 2022, arXiv 2210.08823, eq. 2-3): y = gamma * (W x + b) + beta, folded into W and b."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale channel by channel; a missing bias counts as zero."""
    gamma, beta = tensors["gamma"].astype(np.float64), tensors.get("beta")
    new = weight.astype(np.float64).copy()
    if weight.ndim == gamma.ndim:  # a norm, whose weight has no input axis
        new *= gamma
    else:
        for out in range(weight.shape[0]):
            new[out] *= gamma[out]
    if bias is None and beta is None:
        return new, None
    moved = gamma * (0.0 if bias is None else bias.astype(np.float64))
    return new, moved if beta is None else moved + beta
