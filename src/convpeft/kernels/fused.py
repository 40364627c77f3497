"""For GPUs, where operations are cheap and launches are not: the weight in one launch, its gradient in another."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from convpeft.errors import one_line
from convpeft.kernels.operations import Operation, without_autocast
from convpeft.kernels.weights import effective_weight, has_channels_last


def fused(
    x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, down: Tensor, scale: Tensor | None, operation: Operation
) -> Tensor:
    """Run a layer with the weight scale * (W + up @ down).

    The effective weight is built once, by a single kernel of Triton on a GPU, and kept in the type of the input.
    Backward asks PyTorch for the gradients of input and weight at once, and multiplies the second with the factors.

    Args:
        x: Input (batch, in, *space).
        weight: Frozen weight (out, in, *kernel).
        bias: (out) or None.
        up: (out, rank).
        down: (rank, in * prod(kernel)).
        scale: Constant factor for each filter of the adapted weight (out), or None.
        operation: The layer without its weight.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    return _Fused.apply(x, weight, bias, up, down, scale, operation)  # type: ignore[no-any-return]


class _Fused(torch.autograd.Function):
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
        whole = build_weight(weight, up, down, scale, x)
        ctx.save_for_backward(x, weight, up, down, scale, whole)
        ctx.operation = operation
        return operation.run(x, whole, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, up, down, scale, whole = ctx.saved_tensors
        operation: Operation = ctx.operation
        of_x, _, of_bias, of_up, of_down, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted, and the weight has one
            whole = _by_torch(weight, up, down, scale, x)
        grad_x = grad_up = grad_down = grad_bias = None
        if of_up or of_down:
            grad_x, grad_whole = operation.gradients(grad, x, whole, of_x=of_x)
            flat = grad_whole.reshape(up.shape[0], -1).to(up.dtype)
            if scale is not None:
                flat = flat * scale.to(up.dtype).unsqueeze(1)
            grad_up = flat @ down.T if of_up else None
            grad_down = up.T @ flat if of_down else None
        elif of_x:
            grad_x = operation.input_gradient(grad, x, whole)
        if of_bias:
            grad_bias = operation.total(grad)
        return grad_x, None, grad_bias, grad_up, grad_down, None, None


def build_weight(weight: Tensor, up: Tensor, down: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    """Scale * (W + up @ down) in the memory layout and type of the input, in one launch where Triton is there."""
    if like.is_cuda and has_triton():
        from convpeft.kernels.triton_kernels import weight_of

        return weight_of(weight, up, down, scale, like.dtype, channels_last=has_channels_last(like))
    return _by_torch(weight, up, down, scale, like)


def _by_torch(weight: Tensor, up: Tensor, down: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    factor = up if scale is None else up * scale.to(up.dtype).unsqueeze(1)
    return effective_weight(weight, factor, down, scale, like)


@functools.cache
def has_triton() -> bool:
    """Whether there is a GPU for which Triton compiles our kernels, and what they compute there is right.

    They are tried once in a process; where that fails, PyTorch's operations do the work, and a warning says so.
    """
    from torch.utils._triton import has_triton as found

    if not found():
        return False
    from convpeft.kernels.triton_kernels import try_out

    try:
        why = try_out(torch.device("cuda"))
    except Exception as error:  # of a compiler, of any kind
        why = one_line(error, 160)
    if why:
        warnings.warn(
            f"Triton's kernels cannot be used ({why}). PyTorch's take their place.", UserWarning, stacklevel=2
        )
    return not why
