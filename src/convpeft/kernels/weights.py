"""The tensors that kernels build anew in each pass: the effective weight, and a factor as filters."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_weight(weight: Tensor, up: Tensor, down: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    """Scale * W + up @ down in the memory layout of the input, built in the type of the factors and cast last.

    Args:
        weight: Frozen weight (out, in, *kernel).
        up: (out, rank), multiplied by the scale already.
        down: (rank, in * prod(kernel)).
        scale: Factor for each filter (out), or None for one.
        like: Input of the layer, whose layout and type the weight gets; a convolution reorders a weight of the other
            layout twice a step.

    Returns:
        Weight (out, in, *kernel).
    """
    last = has_channels_last(like)
    turned, factor = weight, down
    if last:
        turned, factor = weight.movedim(1, -1), down.view(-1, *weight.shape[1:]).movedim(1, -1).flatten(1)
    summed = torch.empty(turned.shape, dtype=up.dtype, device=weight.device)
    if scale is None:
        summed.copy_(turned)
    else:
        torch.mul(turned, scale.to(up.dtype).view(-1, *[1] * (weight.ndim - 1)), out=summed)
    summed.flatten(1).addmm_(up, factor)
    return (summed.movedim(-1, 1) if last else summed).to(like.dtype)


def filters_of(down: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """`down` as the weight of a convolution into rank channels, in the memory layout and type of the input."""
    filters = down.view(-1, *weight.shape[1:]).to(like.dtype)
    return filters.contiguous(memory_format=torch.channels_last) if has_channels_last(like) else filters


def has_channels_last(x: Tensor) -> bool:
    """Whether the channels of images are nearest in memory."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
