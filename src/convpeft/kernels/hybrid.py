"""One operation with the effective weight forward, one backward, and rank-r work for the factors; only x is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convpeft.kernels.operations import Operation


def hybrid(x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, operation: Operation) -> Tensor:
    """Run a layer with the weight W + up @ down, without ever computing the gradient of a whole weight.

    With the gradient g of the output, backward computes that of the input as the layer does with its effective
    weight, then, in rank-r channels, z = down * x, grad_up = sum g z^T over batch and positions, h = up^T g and
    grad_down = the weight gradient of the convolution that turns x into z, at h.

    Args:
        x: Input (batch, in, *space).
        weight: Frozen weight (out, in, *kernel).
        bias: (out) or None.
        up: (out, rank), every scale included.
        down: (rank, in * prod(kernel)).
        operation: The layer without its weight.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    return _Hybrid.apply(x, weight, bias, up, down, operation)  # type: ignore[no-any-return]


def effective_weight(weight: Tensor, up: Tensor, down: Tensor, like: Tensor) -> Tensor:
    """W + up @ down, built in the type of the factors and cast last, in the memory layout of the input."""
    wide = weight.to(up.dtype)
    if not _has_channels_last(like):
        return torch.addmm(wide.flatten(1), up, down).view(weight.shape).to(like.dtype)
    turned = [each.movedim(1, -1) for each in (wide, down.view(-1, *weight.shape[1:]))]  # a convolution reorders twice
    summed = torch.addmm(turned[0].flatten(1), up, turned[1].flatten(1))
    return summed.view(turned[0].shape).movedim(-1, 1).to(like.dtype)


def filters_of(down: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """`down` as the weight of a convolution into rank channels, in the memory layout of the input."""
    filters = down.view(-1, *weight.shape[1:]).to(like.dtype)
    return filters.contiguous(memory_format=torch.channels_last) if _has_channels_last(like) else filters


def _has_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class _Hybrid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, operation: Operation
    ) -> Tensor:
        ctx.save_for_backward(x, weight, up, down)
        ctx.operation = operation
        return operation.run(x, effective_weight(weight, up, down, x), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        device = grads[0].device.type
        if not torch.is_autocast_enabled(device):
            return _Hybrid._backward(ctx, grads[0])
        with torch.autocast(device, enabled=False):
            return _Hybrid._backward(ctx, grads[0])

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, up, down = ctx.saved_tensors
        operation: Operation = ctx.operation
        of_x, _, of_bias, of_up, of_down, _ = ctx.needs_input_grad
        filters = filters_of(down, weight, x)
        grad_x = grad_up = grad_down = grad_bias = None
        if of_x:
            grad_x = operation.input_gradient(grad, x, effective_weight(weight, up, down, x))
        if of_up:
            grad_up = operation.pair(grad, operation.run(x, filters, None)).to(up.dtype)
        if of_down:
            inner = operation.mix(grad, up.T.to(x.dtype))
            grad_down = operation.weight_gradient(inner, x, filters).reshape(down.shape).to(down.dtype)
        if of_bias:
            grad_bias = operation.pair(grad, torch.ones_like(grad[:, :1])).flatten()
        return grad_x, None, grad_bias, grad_up, grad_down, None
