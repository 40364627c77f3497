"""CoLoRA (Rivera, Hoyos 2025, arXiv 2505.18315): dW[o, i, h, w] = P[o, i] D[o, h, w], or P[o, i] D[i, h, w]."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reference.convolution import convolution


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Filter by filter, channel by channel; merged epochs come on top."""
    new = weight.astype(np.float64).copy()
    out, inside = weight.shape[:2]
    per_group = out // options["groups"]
    for o in range(out):
        for i in range(inside):
            row = o if options["order"] == "pointwise-first" else (o // per_group) * inside + i
            new[o, i] += (tensors["pointwise"][o, i] * tensors["depthwise"][row]).reshape(weight.shape[2:])
    if options["merge_every"] == "epoch":
        new += tensors["merged"]
    if options["bias"] == "none":
        return new, bias
    return new, tensors["shift"] + (0.0 if bias is None else bias)


def new_output(
    given: np.ndarray,
    output: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    geometry: Mapping[str, Any],
) -> np.ndarray:
    """The released code's layers: 1x1 with bias, then depthwise with bias; plain convolutions only."""
    ones = [1] * len(geometry["kernel"])
    dims = len(ones)
    pointwise = tensors["pointwise"].reshape(*tensors["pointwise"].shape, *ones)
    still = {"stride": ones, "padding": [0] * dims, "dilation": ones, "padding_mode": "zeros"}
    inside = convolution(given, pointwise, tensors["inner"], groups=geometry["groups"], **still)
    out = len(tensors["inner"])
    moves = {key: geometry[key] for key in ("stride", "padding", "dilation", "padding_mode")}
    filters = tensors["depthwise"].reshape(out, 1, *geometry["kernel"])
    added = convolution(inside, filters, tensors["shift"], groups=out, **moves)
    return output + options.get("learned_scale_value", 1.0) * added
