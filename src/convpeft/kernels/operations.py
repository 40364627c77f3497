"""A layer as a linear operation: what it does with a weight, and what its gradients are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_INPUT, _WEIGHT = [True, False, False], [False, True, False]


class Operation(Protocol):
    """One layer without its weight: `weight` is (out, in, *kernel) or, for fewer channels, (rank, in, *kernel)."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Output (batch, out, *space) of the input (batch, in, *space)."""
        ...

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input from that of the output."""
        ...

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the weight from that of the output."""
        ...

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, *, of_x: bool) -> tuple[Tensor | None, Tensor]:
        """Gradients of the input, if that is wanted, and of the weight."""
        ...

    def mix(self, grad: Tensor, matrix: Tensor) -> Tensor:
        """At each position, (batch, in, *space) times a matrix (out, in)."""
        ...

    def pair(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum over batch and positions of the outer products of channels, (channels of first, of second)."""
        ...

    def total(self, grad: Tensor) -> Tensor:
        """Gradient of the bias (out) from that of the output."""
        ...


@dataclass(frozen=True)
class Convolution:
    """A convolution, padded with zeros on both sides alike; `mix` and `pair` take all channels as one group."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def is_pointwise(self, kernel: Sequence[int]) -> bool:
        """Whether with a kernel of this size each position of the output sees the same one of the input alone."""
        ones = all(size == 1 for size in (*kernel, *self.stride, self.groups))
        return ones and not any(self.padding)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See Operation."""
        none = (0,) * len(self.stride)
        return torch.ops.aten.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, none, self.groups
        )

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See Operation."""
        return self._backward(grad, x, weight, _INPUT)[0]

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See Operation."""
        return self._backward(grad, x, weight, _WEIGHT)[1]

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, *, of_x: bool) -> tuple[Tensor | None, Tensor]:
        """See Operation; one call for both."""
        of_input, of_weight, _ = self._backward(grad, x, weight, [of_x, True, False])
        return of_input if of_x else None, of_weight

    def mix(self, grad: Tensor, matrix: Tensor) -> Tensor:
        """See Operation."""
        ones = (1,) * len(self.stride)
        zeros = (0,) * len(self.stride)
        weight = matrix.view(*matrix.shape, *ones)
        return torch.ops.aten.convolution(grad, weight, None, ones, zeros, ones, False, zeros, 1)

    def pair(self, first: Tensor, second: Tensor) -> Tensor:
        """See Operation."""
        if first.stride(1) == 1 and second.stride(1) == 1:
            return _pair_last(first, second)
        return torch.bmm(first.flatten(2), second.flatten(2).transpose(1, 2)).sum(0)

    def total(self, grad: Tensor) -> Tensor:
        """See Operation."""
        return grad.sum([0, *range(2, grad.ndim)])

    def _backward(self, grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> list[Tensor]:
        none = (0,) * len(self.stride)
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, none, self.groups, mask
        )


class Pointwise:
    """A convolution of single positions, as a product of matrices; the channels of images are nearest in memory."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See Operation."""
        if torch.is_grad_enabled():
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        rows, matrix = x.movedim(1, -1).flatten(0, -2), weight.flatten(1).T
        into = output.movedim(1, -1).flatten(0, -2)  # a network may change its output in place, but no view of one
        if bias is None:
            torch.mm(rows, matrix, out=into)
        else:
            torch.addmm(bias, rows, matrix, out=into)
        return output

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See Operation."""
        return (grad.movedim(1, -1) @ weight.flatten(1)).movedim(-1, 1)

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See Operation."""
        return _pair_last(grad, x).reshape(weight.shape)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, *, of_x: bool) -> tuple[Tensor | None, Tensor]:
        """See Operation."""
        return self.input_gradient(grad, x, weight) if of_x else None, self.weight_gradient(grad, x, weight)

    def mix(self, grad: Tensor, matrix: Tensor) -> Tensor:
        """See Operation."""
        return F.linear(grad.movedim(1, -1), matrix).movedim(-1, 1)

    def pair(self, first: Tensor, second: Tensor) -> Tensor:
        """See Operation."""
        return _pair_last(first, second)

    def total(self, grad: Tensor) -> Tensor:
        """See Operation."""
        return grad.sum([0, *range(2, grad.ndim)])


class Linear:
    """A linear layer: (..., in) to (..., out)."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See Operation."""
        return F.linear(x, weight, bias)

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See Operation."""
        return grad @ weight

    def weight_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """See Operation."""
        return grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, *, of_x: bool) -> tuple[Tensor | None, Tensor]:
        """See Operation."""
        return self.input_gradient(grad, x, weight) if of_x else None, self.weight_gradient(grad, x, weight)

    def mix(self, grad: Tensor, matrix: Tensor) -> Tensor:
        """See Operation."""
        return F.linear(grad, matrix)

    def pair(self, first: Tensor, second: Tensor) -> Tensor:
        """See Operation."""
        return first.reshape(-1, first.shape[-1]).T @ second.reshape(-1, second.shape[-1])

    def total(self, grad: Tensor) -> Tensor:
        """See Operation."""
        return grad.flatten(0, -2).sum(0) if grad.ndim > 1 else grad


def _pair_last(first: Tensor, second: Tensor) -> Tensor:
    """`Operation.pair` of images whose channels are nearest in memory; the fewer channels go first, for speed."""
    if first.shape[1] < second.shape[1]:
        return _pair_last(second, first).T
    wide, thin = (each.movedim(1, -1).flatten(1, -2) for each in (first, second))  # (batch, positions, channels)
    if wide.shape[1] >= wide.shape[2]:  # many small products take less time than one long one
        return torch.bmm(thin.mT, wide).sum(0).T
    return (thin.flatten(0, 1).T @ wide.flatten(0, 1)).T


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a backward in the types of what was saved; autocast may still be on around it."""

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        device = next((grad.device.type for grad in grads if grad is not None), "cpu")
        if not torch.is_autocast_enabled(device):
            return backward(ctx, *grads)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    return run
