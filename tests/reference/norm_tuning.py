"""Norm tuning (Frankle et al. 2021, arXiv 2003.00152): gamma and beta move, by offsets."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """gamma + gain, beta + shift."""
    del options
    moved = None if bias is None else bias.astype(np.float64) + tensors["shift"]
    return weight.astype(np.float64) + tensors["gain"], moved
