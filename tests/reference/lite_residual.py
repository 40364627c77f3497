"""Lite residual (Cai et al. 2020, arXiv 2007.11622): pool, grouped convolution, norm, ReLU, 1x1, norm, upsample."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reference.convolution import convolution
from reference.normalisation import group_norm


def new_output(
    given: np.ndarray,
    output: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    geometry: Mapping[str, Any] | None,
) -> np.ndarray:
    """Layer by layer; the same beside a block and beside a convolution."""
    x, size = given.astype(np.float64), output.shape[2:]
    stride = [max(1, int(np.floor(n / m + 0.5))) for n, m in zip(x.shape[2:], size, strict=True)]
    for axis in range(2, x.ndim):
        x = _halved(x, axis)
    filters = _standardised(tensors["filters"], options)
    hidden = convolution(
        x,
        filters,
        None,
        stride=stride,
        padding=[options["kernel"] // 2] * len(size),
        dilation=[1] * len(size),
        groups=x.shape[1] // filters.shape[1],
        padding_mode="zeros",
    )
    hidden = group_norm(hidden, _groups(hidden.shape[1]), tensors["inner_gain"], tensors["inner_shift"], 1e-5)
    hidden = np.maximum(hidden, 0)
    mix = _standardised(tensors["mix"], options)
    made = np.zeros((x.shape[0], output.shape[1], *hidden.shape[2:]))
    for o, row in enumerate(mix):
        for i, factor in enumerate(row):
            made[:, o] += factor * hidden[:, i]
    made = group_norm(made, _groups(made.shape[1]), tensors["outer_gain"], tensors["outer_shift"], 1e-5)
    for axis, length in enumerate(size, start=2):
        made = _stretched(made, axis, length)
    return output + made


def _groups(channels: int) -> int:
    """Of the divisors, the one nearest to an eighth."""
    return min((abs(d - channels / 8), d) for d in range(1, channels + 1) if channels % d == 0)[1]


def _standardised(weight: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    weight = weight.astype(np.float64)
    if not options["standardise"] or weight[0].size == 1:
        return weight
    return np.stack([(each - each.mean()) / np.sqrt(each.var() + 1e-10) for each in weight])


def _halved(x: np.ndarray, axis: int) -> np.ndarray:
    """Mean of each two neighbours, an odd one at the end left out."""
    if x.shape[axis] == 1:
        return x
    pairs = [(2 * i, 2 * i + 1) for i in range(x.shape[axis] // 2)]
    return np.stack([(x.take(a, axis) + x.take(b, axis)) / 2 for a, b in pairs], axis)


def _stretched(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation between the middles of cells, constant beyond the outer ones."""
    length = x.shape[axis]
    lines = []
    for i in range(size):
        place = min(max((i + 0.5) * length / size - 0.5, 0.0), length - 1.0)
        low = int(place)
        high = min(low + 1, length - 1)
        lines.append(x.take(low, axis) * (1 - (place - low)) + x.take(high, axis) * (place - low))
    return np.stack(lines, axis)
