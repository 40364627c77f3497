"""Any map of a weight: the effective weight is built once more for the backward pass, and only the input is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from convpeft.kernels.operations import Operation, without_autocast

Build = Callable[[], tuple[Tensor, Tensor | None]]
Pull = Callable[[Tensor], Sequence[Tensor]]


@runtime_checkable
class PullsBack(Protocol):
    """An adapter that finds the gradients of its tensors for less than autograd does through its map."""

    def pull_back(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        """Gradient of each of its parameters, in their order.

        Args:
            weight: What the map was given, (out, in/groups, *kernel).
            grad: Gradient of what the map made of it, of the same shape.
        """
        ...


def rebuilt(
    x: Tensor, build: Build, trained: Sequence[Tensor], operation: Operation, pull: Pull | None = None
) -> Tensor:
    """Run a layer with the weight and bias that a function builds, and let go of what it made on the way.

    PyTorch keeps the effective weight and all that a map computes on its way there; for some methods that is more than
    all activations. Building a weight is little work beside running it.

    Args:
        x: Input (batch, in, *space).
        build: Gives weight (out, in/groups, *kernel) and bias (out) or None, both times the same, from `trained`.
        trained: All tensors that get a gradient through them.
        operation: The layer without its weight.
        pull: Gives the gradients of `trained` from that of the weight; None where autograd has to find them.

    Returns:
        Output (batch, out, *space) in the type of x.
    """
    return _Rebuilt.apply(x, build, operation, pull, *trained)  # type: ignore[no-any-return]


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, build: Build, operation: Operation, pull: Pull | None, *trained: Tensor) -> Tensor:
        ctx.save_for_backward(x, *trained)
        ctx.build, ctx.operation, ctx.pull = build, operation, pull
        weight, bias = build()
        return operation.run(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *trained = ctx.saved_tensors
        operation: Operation = ctx.operation
        further = torch.is_grad_enabled()  # a derivative of this derivative is wanted
        pull: Pull | None = None if further or not all(ctx.needs_input_grad[4:]) else ctx.pull
        with torch.set_grad_enabled(pull is None):
            weight, bias = ctx.build()
        cast = weight.to(x.dtype) if further else weight.detach().to(x.dtype)
        grad_x = operation.input_gradient(grads[0], x, cast) if ctx.needs_input_grad[0] else None
        grad_weight = operation.weight_gradient(grads[0], x, cast).to(weight.dtype)
        if pull is not None:
            return grad_x, None, None, None, *pull(grad_weight)
        outputs, directions = [weight], [grad_weight]
        if bias is not None and bias.requires_grad:
            outputs.append(bias)
            directions.append(operation.total(grads[0]).to(bias.dtype))
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        made = torch.autograd.grad(
            outputs, [trained[index] for index in wanted], directions, create_graph=further, allow_unused=True
        )
        grad_trained: list[Tensor | None] = [None] * len(trained)
        for index, grad in zip(wanted, made, strict=True):
            grad_trained[index] = grad
        return grad_x, None, None, None, *grad_trained
