"""LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): W' = W + alpha / r * B A, with W as a matrix (out, n)."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sum over the rank, one outer product at a time; the scale uses the rank that was asked for."""
    scale = 1.0
    if options["alpha"] is not None:
        scale = options["alpha"] / (options["rank"] ** 0.5 if options["rslora"] else options["rank"])
    new = weight.astype(np.float64).copy()
    for out in range(weight.shape[0]):
        for r in range(tensors["up"].shape[1]):
            step = scale * float(tensors["up"][out, r]) * tensors["down"][r].astype(np.float64)
            new[out] += step.reshape(weight.shape[1:])
            if options["init"] == "pissa":  # the stored start is taken away
                step = scale * float(tensors["start_up"][out, r]) * tensors["start_down"][r].astype(np.float64)
                new[out] -= step.reshape(weight.shape[1:])
    return new, bias
