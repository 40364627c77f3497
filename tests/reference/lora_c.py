"""LoRA-C (Ding et al. 2024, arXiv 2410.16954, eq. 5): W' = W + alpha / r * reshape(B A), B A of shape (O k, I k)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Look up each entry of the kernel in the product: row (o, a), column (i, b), or by its place in memory."""
    scale = 2.0 if options["alpha"] is None else options["alpha"] / options["rank"]
    up, down = tensors["up"].astype(np.float64), tensors["down"].astype(np.float64)
    new = weight.astype(np.float64).copy()
    if options["layout"] == "loralib":
        return new + scale * (up @ down).reshape(weight.shape), bias
    kernel = weight.shape[2:]
    long_axes = [axis for axis, size in enumerate(kernel) if size > 1]
    out_axis = long_axes[0] if len(long_axes) > 1 else None  # this kernel axis goes with the output
    out_size = 1 if out_axis is None else kernel[out_axis]
    in_axes = [axis for axis in range(len(kernel)) if axis != out_axis]
    in_size = math.prod(kernel[axis] for axis in in_axes)
    for o, i, *place in np.ndindex(*weight.shape):
        a = 0 if out_axis is None else place[out_axis]
        b = 0
        for axis in in_axes:
            b = b * kernel[axis] + place[axis]
        if options["per"] == "kernel":
            step = up[o, a] @ down[o, :, i * in_size + b]
        else:
            step = up[o * out_size + a] @ down[:, i * in_size + b]
        new[(o, i, *place)] += scale * step
    return new, bias
