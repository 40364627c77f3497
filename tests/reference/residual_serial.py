"""Serial residual adapter (Rebuffi et al. 2017, arXiv 1705.08045): v = u + A BN(u), in evaluation, with u = W x + b."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Each output gets a sum over the normalised outputs of its own group; a norm is (u - mean) / deviation * g + s."""
    out = weight.shape[0]
    size = out // options["groups"]  # outputs of one group
    old_bias = np.zeros(out) if bias is None else bias.astype(np.float64)
    outputs = [(weight[o].astype(np.float64), old_bias[o]) for o in range(out)]  # each as a linear map and a constant
    normed = list(outputs)
    if options["own_norm"]:
        for o, (rows, constant) in enumerate(outputs):
            deviation = np.sqrt(tensors["running_var"][o] + 1e-5)
            centred = (constant - tensors["running_mean"][o]) / deviation
            normed[o] = (
                rows / deviation * tensors["gain"][o],
                centred * tensors["gain"][o] + tensors["shift"][o],
            )
    new_weight, new_bias = np.zeros(weight.shape), np.zeros(out)
    for o in range(out):
        first = o // size * size
        rows, constant = outputs[o]
        for inside in range(size):
            factor = tensors["adapter"][o, inside]
            rows = rows + factor * normed[first + inside][0]
            constant = constant + factor * normed[first + inside][1]
        new_weight[o], new_bias[o] = rows, constant
    return new_weight, new_bias if bias is not None or options["own_norm"] else None
