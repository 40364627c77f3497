"""CHAPTER (Chen et al. 2022, arXiv 2212.01282) on any convolution: g(x) beside a layer, or g(u) after it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Write the whole kernel of g, channel by channel, and add it to the layer's; a gain where g is serial."""
    adapter, groups = tensors["adapter"].astype(np.float64), options["groups"]
    new = weight.astype(np.float64).copy()
    out, inputs = weight.shape[0] // groups, weight.shape[1]
    if options["arrangement"] == "serial":
        gains = [adapter[o if options["matching"] == "group" else 0, 0] for o in range(weight.shape[0])]
        for o, gain in enumerate(gains):
            new[o] += gain * weight[o]
        return new, None if bias is None else np.array([b + g * b for b, g in zip(bias, gains, strict=True)])
    middle = tuple((size - 1) // 2 for size in weight.shape[2:])
    taps = adapter.shape[2]
    for group in range(groups):
        for o in range(out):
            row = group * out + o
            if options["matching"] == "group":  # a grouped convolution has consecutive outputs see consecutive inputs
                slices = math.gcd(out, inputs)
                own = o * slices // out
                pairs = [
                    (i, adapter[row, i - own * inputs // slices]) for i in range(inputs) if i * slices // inputs == own
                ]
            else:  # filters of the first copy, then the same again
                filters = [adapter[group * min(out, inputs) + i, 0] for i in range(min(out, inputs))]
                copied = [(i, each) for _ in range(out) for i, each in enumerate(filters)]
                pairs = [copied[o]]
            for i, line in pairs:
                for t in range(taps):
                    place = middle[-1] + t - (taps - 1) // 2
                    new[(row, i, *middle[:-1], place)] += line[t]
    return new, bias


def new_output(
    given: np.ndarray,
    output: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    geometry: Mapping[str, Any] | None,
) -> np.ndarray:
    """Filter each line of the layer's output along the last axis, zeros beyond its ends."""
    adapter, scale = tensors["adapter"].astype(np.float64), float(tensors.get("learned_scale", np.ones(1))[0])
    new, length = output.astype(np.float64).copy(), output.shape[-1]
    for channel in range(output.shape[1]):
        line = adapter[channel if options["matching"] == "group" else 0]
        for place in range(length):
            for t, factor in enumerate(line):
                source = place + t - (len(line) - 1) // 2
                if 0 <= source < length:
                    new[:, channel, ..., place] += scale * factor * output[:, channel, ..., source]
    return new
