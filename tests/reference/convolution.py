"""A (transposed) convolution of any geometry in numpy: one tap of the kernel at a time, in float64.

Weights come as `(out, in/groups, *kernel)`, for transposed convolutions too.
"""

import itertools
from collections.abc import Sequence

import numpy as np

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def canonical(weight: np.ndarray, groups: int) -> np.ndarray:
    """torch's transposed weight `(in, out/groups, *kernel)` as `(out, in/groups, *kernel)`, number by number."""
    inputs, out_per_group = weight.shape[:2]
    in_per_group = inputs // groups
    result = np.zeros((out_per_group * groups, in_per_group, *weight.shape[2:]), weight.dtype)
    for group, out, inner in np.ndindex(groups, out_per_group, in_per_group):
        result[group * out_per_group + out, inner] = weight[group * in_per_group + inner, out]
    return result


def convolution(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
) -> np.ndarray:
    """`x (batch, in, *space)` convolved; padding a number an axis, "same" or "valid"."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    kernel = weight.shape[2:]
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    elif padding == "valid":
        pads = [(0, 0) for _ in kernel]
    else:
        pads = [(int(p), int(p)) for p in padding]
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=PAD_MODES[padding_mode])
    space = [(n - d * (k - 1) - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilation, stride, strict=True)]
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])  # (batch, groups, in/groups, *space)
    filters = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, out/groups, in/groups, *kernel)
    out = np.zeros((x.shape[0], groups, filters.shape[1], *space))
    for tap in itertools.product(*[range(k) for k in kernel]):
        window = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, dilation, stride, space, strict=True)
        )
        out += np.einsum("bgi...,goi->bgo...", grouped[(..., *window)], filters[(..., *tap)])
    out = out.reshape(x.shape[0], -1, *space)
    return out if bias is None else out + bias.astype(np.float64).reshape(1, -1, *[1] * len(space))


def transposed_convolution(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> np.ndarray:
    """Every input number spreads one kernel over the output; then `padding` is cut off on both sides."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    kernel, space = weight.shape[2:], x.shape[2:]
    whole = [
        (n - 1) * s + d * (k - 1) + 1 + extra
        for n, s, d, k, extra in zip(space, stride, dilation, kernel, output_padding, strict=True)
    ]
    grouped = x.reshape(x.shape[0], groups, -1, *space)
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    out = np.zeros((x.shape[0], groups, filters.shape[1], *whole))
    for tap in itertools.product(*[range(k) for k in kernel]):
        window = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, dilation, stride, space, strict=True)
        )
        out[(..., *window)] += np.einsum("bgi...,goi->bgo...", grouped, filters[(..., *tap)])
    cut = tuple(slice(p, n - p) for p, n in zip(padding, whole, strict=True))
    out = out.reshape(x.shape[0], -1, *whole)[(..., *cut)]
    return out if bias is None else out + bias.astype(np.float64).reshape(1, -1, *[1] * len(space))


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """`x (..., in)` times the weight's transpose."""
    out = x.astype(np.float64) @ weight.astype(np.float64).T
    return out if bias is None else out + bias.astype(np.float64)
