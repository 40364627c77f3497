"""A layer whose weight is not trained: only the weight is kept, where PyTorch's own operations keep the input too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convpeft.kernels.operations import Operation, without_autocast


def frozen(x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
    """Run a layer whose weight needs no gradient.

    Args:
        x: Input (batch, in, *space).
        weight: (out, in/groups, *kernel), without a gradient.
        bias: (out) or None; it may be trained.
        operation: The layer without its weight.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    return _Frozen.apply(x, weight, bias, operation)  # type: ignore[no-any-return]


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        ctx.set_materialize_grads(False)
        weight = weight.to(x.dtype)
        ctx.save_for_backward(weight)
        ctx.operation, ctx.like = operation, Like(x)
        return operation.run(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if grad is None:
            return None, None, None, None
        (weight,) = ctx.saved_tensors
        of_x, _, of_bias, _ = ctx.needs_input_grad
        operation: Operation = ctx.operation
        grad_x = operation.input_gradient(grad, ctx.like.empty(), weight) if of_x else None
        return grad_x, None, operation.total(grad) if of_bias else None, None


class Like:
    """Shape, type, device and layout of a tensor that is not kept; its gradient depends on nothing else."""

    def __init__(self, x: Tensor) -> None:
        self._shape, self._stride, self._dtype, self._device = x.shape, x.stride(), x.dtype, x.device

    def empty(self) -> Tensor:
        """A tensor like it; its numbers mean nothing, and no memory is touched for them on CPU."""
        return torch.empty_strided(self._shape, self._stride, dtype=self._dtype, device=self._device)
