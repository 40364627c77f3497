"""A product whose `down` is not trained: z = down * x, in rank-r channels, is all that is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convpeft.kernels.frozen import Like, frozen
from convpeft.kernels.operations import Operation, without_autocast
from convpeft.kernels.weights import effective_weight, filters_of


def lean(
    x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, scale: Tensor | None, operation: Operation
) -> Tensor:
    """Run a layer with the weight scale * W + up @ down and keep neither input nor output.

    The gradient of `up` needs z only, that of the input the weights only.

    Args:
        x: Input (batch, in, *space).
        weight: Frozen weight (out, in, *kernel).
        bias: (out) or None.
        up: (out, rank), every scale included.
        down: (rank, in * prod(kernel)), without a gradient.
        scale: Constant factor for each filter of the frozen weight (out), or None.
        operation: The layer without its weight.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    z = frozen(x, filters_of(down, weight, x), None, operation)
    return _Lean.apply(x, z, weight, bias, up, down, scale, operation)  # type: ignore[no-any-return]


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        z: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        up: Tensor,
        down: Tensor,
        scale: Tensor | None,
        operation: Operation,
    ) -> Tensor:
        ctx.save_for_backward(z, weight, up, down, scale)
        ctx.operation, ctx.like = operation, Like(x)
        whole = effective_weight(weight, up, down, scale, x)
        return operation.run(x, whole, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        z, weight, up, down, scale = ctx.saved_tensors
        operation: Operation = ctx.operation
        of_x, _, _, of_bias, of_up, *_ = ctx.needs_input_grad
        grad_x = grad_up = None
        if of_x:
            like = ctx.like.empty()
            grad_x = operation.input_gradient(grad, like, effective_weight(weight, up, down, scale, like))
        if of_up:
            grad_up = operation.pair(grad, z).to(up.dtype)
        return grad_x, None, None, operation.total(grad) if of_bias else None, grad_up, None, None, None
