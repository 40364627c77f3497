"""The textbook map of each method, from a rival's own tensors in float64 numpy; no code of a rival is used.

Weights are `(out, in/groups, *kernel)`. The convolution is that of the reference of our own tests.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from contract.networks import Geometry
from reference.convolution import canonical, convolution, transposed_convolution

Arrays = Mapping[str, np.ndarray]


def as_array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().cpu().numpy()


def low_rank(up: np.ndarray, down: np.ndarray, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """LoRA (arXiv 2106.09685): dW = scale * B A, A over `(in/groups, *kernel)` as in LoCon."""
    return scale * (up.reshape(shape[0], -1) @ down.reshape(down.shape[0], -1)).reshape(shape)


def grouped_low_rank(up: np.ndarray, down: np.ndarray, scale: float, groups: int) -> np.ndarray:
    """LoRA whose second factor alone is grouped: A reads all channels, so dW is dense, `(out, in, *kernel)`."""
    out, rank = up.shape[0], down.shape[0]
    factors = up.reshape(out, -1)
    new = np.zeros((out, *down.shape[1:]))
    for o in range(out):
        first = (o // (out // groups)) * (rank // groups)
        new[o] = scale * np.tensordot(factors[o], down[first : first + rank // groups], axes=1)
    return new


def dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped weight with its zeros written out."""
    out, inner = weight.shape[:2]
    new = np.zeros((out, inner * groups, *weight.shape[2:]))
    for o in range(out):
        first = (o // (out // groups)) * inner
        new[o, first : first + inner] = weight[o]
    return new


def decomposed(direction: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """DoRA (arXiv 2402.09353, eq. 5): W' = m V / |V|, filter by filter."""
    lengths = np.linalg.norm(direction.reshape(direction.shape[0], -1), axis=1)
    factor = magnitude.reshape(-1) / lengths
    return direction * factor.reshape(-1, *[1] * (direction.ndim - 1))


def hadamard(tensors: Arrays, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """LoHa (FedPara, arXiv 2108.06098): dW = scale * (A1 B1) . (A2 B2)."""
    first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
    second = tensors["hada_w2_a"] @ tensors["hada_w2_b"]
    return scale * (first * second).reshape(shape)


def kronecker(tensors: Arrays, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """LoKr (arXiv 2212.10650): dW[(l, k), (m, n), j] = scale * C1[l, m] * C2[k, n, j], whole or low-rank."""
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    second = tensors["lokr_w2"] if "lokr_w2" in tensors else tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    outs, ins = shape[0] // first.shape[0], shape[1] // first.shape[1]
    second = second.reshape(outs, ins, -1)
    return scale * np.einsum("lm,knj->lkmnj", first, second).reshape(shape)


def output(
    geometry: Geometry, x: Tensor, weight: np.ndarray, bias: np.ndarray | None, *, groups: int | None = None
) -> Tensor:
    """What the layer gives with these weights: the convolution of the tests' reference, in float64."""
    dims = len(geometry.kernel)
    padding = (geometry.padding,) * dims if isinstance(geometry.padding, int) else geometry.padding
    common = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": groups or geometry.groups}
    numbers = x.detach().double().numpy()
    if geometry.transposed:
        extra = {"padding": padding, "output_padding": geometry.output_padding}
        return torch.from_numpy(transposed_convolution(numbers, weight, bias, **extra, **common))
    extra = {"padding": padding, "padding_mode": geometry.padding_mode}
    return torch.from_numpy(convolution(numbers, weight, bias, **extra, **common))


def own_weight(layer: torch.nn.Module, geometry: Geometry) -> np.ndarray:
    """The layer's weight as `(out, in/groups, *kernel)`, transposed layers too."""
    weight = as_array(layer.weight)
    assert weight is not None
    return canonical(weight, geometry.groups) if geometry.transposed else weight
