"""LoCA (An et al. 2026, arXiv 2607.06918): dW = alpha / r reshape(B A) + diag over o = i of sum_m U[i, m] S_m."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Kernel by kernel: its part of B A, and where output and input are one channel of the group, its patterns."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    outputs, inputs = weight.shape[:2]
    per_group = outputs // options["groups"]
    new = weight.astype(np.float64).reshape(outputs, inputs, -1).copy()
    row = 0
    for out in range(outputs):
        for inner in range(inputs):
            if "up" in tensors:
                columns = slice(inner * new.shape[2], (inner + 1) * new.shape[2])
                new[out, inner] += scale * (tensors["up"][out].astype(np.float64) @ tensors["down"][:, columns])
            if out % per_group == inner:
                for pattern, amount in zip(tensors["axes"], tensors["spatial"][row], strict=True):
                    new[out, inner] += float(amount) * pattern.astype(np.float64)
                row += 1
    return new.reshape(weight.shape), bias
