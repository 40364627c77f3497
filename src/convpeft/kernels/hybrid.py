"""One operation with the effective weight forward, one backward, and rank-r work for the factors; only x is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convpeft.kernels.operations import Operation, without_autocast
from convpeft.kernels.weights import effective_weight, filters_of


def hybrid(
    x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, scale: Tensor | None, operation: Operation
) -> Tensor:
    """Run a layer with the weight scale * W + up @ down, without ever computing the gradient of a whole weight.

    With the gradient g of the output, backward computes that of the input as the layer does with its effective
    weight, then, in rank-r channels, z = down * x, grad_up = sum g z^T over batch and positions, h = up^T g and
    grad_down = the weight gradient of the convolution that turns x into z, at h.

    Args:
        x: Input (batch, in, *space).
        weight: Frozen weight (out, in, *kernel).
        bias: (out) or None.
        up: (out, rank), every scale included.
        down: (rank, in * prod(kernel)).
        scale: Constant factor for each filter of the frozen weight (out), or None.
        operation: The layer without its weight.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    return _Hybrid.apply(x, weight, bias, up, down, scale, operation)  # type: ignore[no-any-return]


class _Hybrid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        up: Tensor,
        down: Tensor,
        scale: Tensor | None,
        operation: Operation,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, up, down, scale)
        ctx.operation = operation
        whole = effective_weight(weight, up, down, scale, x)
        return operation.run(x, whole, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, up, down, scale = ctx.saved_tensors
        operation: Operation = ctx.operation
        of_x, _, of_bias, of_up, of_down, *_ = ctx.needs_input_grad
        filters = filters_of(down, weight, x)
        grad_x = grad_up = grad_down = grad_bias = None
        if of_x:
            whole = effective_weight(weight, up, down, scale, x)
            grad_x = operation.input_gradient(grad, x, whole)
        if of_up:
            grad_up = operation.pair(grad, operation.run(x, filters, None)).to(up.dtype)
        if of_down:
            inner = operation.mix(grad, up.T.to(x.dtype))
            grad_down = operation.weight_gradient(inner, x, filters).reshape(down.shape).to(down.dtype)
        if of_bias:
            grad_bias = operation.total(grad)
        return grad_x, None, grad_bias, grad_up, grad_down, None, None
