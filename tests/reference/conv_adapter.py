"""Conv-Adapter (Chen et al. 2024, arXiv 2208.07463): u + gain * W_up relu(depthwise(x)), x the input or u."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reference.convolution import convolution, transposed_convolution


def new_output(
    given: np.ndarray,
    output: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    geometry: Mapping[str, Any] | None,
) -> np.ndarray:
    """The depthwise convolution with the oracle of convolutions, the rest channel by channel."""
    down = tensors["down"].astype(np.float64)
    width, kernel = down.shape[0], down.shape[2:]
    if options["scheme"].endswith("sequential"):
        dilation = (1,) * len(kernel) if geometry is None else geometry["dilation"]
        hidden = _same(output, down, tensors["down_bias"], [1] * len(kernel), dilation)
    elif geometry is None:
        stride = [max(1, int(np.floor(n / m + 0.5))) for n, m in zip(given.shape[2:], output.shape[2:], strict=True)]
        hidden = _same(given, down, tensors["down_bias"], stride, (1,) * len(kernel))
    else:
        common = {name: geometry[name] for name in ("stride", "padding", "dilation")} | {"groups": width}
        if geometry["transposed"]:
            common |= {"output_padding": geometry["output_padding"]}
            hidden = transposed_convolution(given, down, tensors["down_bias"], **common)
        else:
            common |= {"padding_mode": geometry["padding_mode"]}
            hidden = convolution(given, down, tensors["down_bias"], **common)
    hidden = np.maximum(hidden, 0)
    for axis, size in enumerate(output.shape[2:], start=2):
        hidden = _pooled(hidden, axis, size)
    new = output.astype(np.float64).copy()
    for o in range(new.shape[1]):
        made = np.full(new[:, o].shape, tensors["up_bias"][o], np.float64)
        for inside in range(width):
            made += tensors["up"][o, inside] * hidden[:, inside]
        new[:, o] += tensors["gain"][o] * made
    return new


def _same(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: list[int], dilation: Any) -> np.ndarray:
    """As many outputs as inputs, then every stride-th of them."""
    whole = convolution(
        x,
        weight,
        bias,
        stride=[1] * len(stride),
        padding="same",
        dilation=dilation,
        groups=weight.shape[0],
        padding_mode="zeros",
    )
    return whole[(slice(None), slice(None), *[slice(None, None, step) for step in stride])]


def _pooled(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Mean of the numbers that each of `size` equal stretches of the axis touches."""
    length = x.shape[axis]
    stretches = [range(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
    return np.stack([np.take(x, stretch, axis).mean(axis) for stretch in stretches], axis)
