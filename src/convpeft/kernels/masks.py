"""Activations and pooling that keep a byte or two for each number instead of the number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convpeft.kernels.frozen import Like
from convpeft.kernels.running import in_checkpoint


class Masks(TorchFunctionMode):
    """Inside this block max-pooling keeps where in its window it found each number, and ReLU where it was positive.

    PyTorch keeps 8-byte positions of a pooling and its input, and the output of ReLU. The latter costs nothing where
    the next layer keeps the same numbers anyway; where no layer does, it is most of what is left.
    """

    def __init__(self, *, activations: bool) -> None:
        super().__init__()
        self._activations = activations

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See TorchFunctionMode."""
        given = kwargs or {}
        if func in _POOLS and _is_kept(args):
            return _pooled(func, *args, **given)
        if self._activations and func in _ACTIVATIONS and _is_kept(args):
            return _activated(func, *args, **given)
        return func(*args, **given)


def masked_relu(x: Tensor, ceiling: float | None = None, *, inplace: bool = False) -> Tensor:
    """ReLU, cut off above where there is a ceiling, that keeps one byte a number."""
    return _MaskedReLU.apply(x, ceiling, inplace)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Window:
    """Geometry of a max-pooling of images, in rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil: bool = False

    def first(self, output: Tensor, width: int) -> Tensor:
        """Position in an image of that width of the first place of each window (height, width of the output)."""
        axes = [
            torch.arange(size, device=output.device) * step - border
            for size, step, border in zip(output.shape[2:], self.stride, self.padding, strict=True)
        ]
        return axes[0].unsqueeze(1) * width + axes[1]

    def narrowest(self, width: int) -> torch.dtype:
        """Type that holds the distance of any place from the first one."""
        rows, columns = ((size - 1) * apart for size, apart in zip(self.kernel, self.dilation, strict=True))
        return torch.int16 if rows * width + columns <= torch.iinfo(torch.int16).max else torch.int64


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Max-pooling of images (batch, channels, height, width) that keeps two bytes for each number of its output."""
    return _MaxPool.apply(x, window)  # type: ignore[no-any-return]


def _is_kept(args: Sequence[Any]) -> bool:
    x = args[0] if args else None
    if type(x) is not Tensor or not x.requires_grad or not x.is_floating_point():
        return False
    return torch.is_grad_enabled() and not in_checkpoint()


def _activated(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    if func is F.hardtanh:
        return _clipped(*args, **kwargs)
    return _rectified(func, *args, **kwargs)


def _rectified(func: Callable[..., Any], x: Tensor, inplace: bool = False) -> Tensor:
    return masked_relu(x, 6.0 if func is F.relu6 else None, inplace=inplace or func in _IN_PLACE)


def _clipped(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return masked_relu(x, max_val, inplace=inplace) if min_val == 0 else F.hardtanh(x, min_val, max_val, inplace)


def _pooled(
    func: Callable[..., Any],
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if x.ndim != 4 or return_indices:
        return func(x, kernel_size, stride, padding, dilation, ceil_mode)
    kernel, step, border, apart = map(_pair, (kernel_size, stride or kernel_size, padding, dilation))
    return max_pool(x, Window(kernel, step, border, apart, ceil_mode))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else cast(tuple[int, int], tuple(value))


_IN_PLACE = (torch.relu_, Tensor.relu_)
_ACTIVATIONS = (torch.relu, Tensor.relu, F.relu, F.relu6, F.hardtanh, *_IN_PLACE)
_POOLS = (torch.max_pool2d, F.max_pool2d)


class _MaskedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float | None, inplace: bool) -> Tensor:
        passed = x > 0 if ceiling is None else (x > 0) & (x < ceiling)
        ctx.save_for_backward(passed.view(torch.uint8))  # PyTorch turns these into numbers faster than booleans
        if inplace:
            ctx.mark_dirty(x)
            return x.relu_() if ceiling is None else x.clamp_(0, ceiling)
        return x.relu() if ceiling is None else x.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (passed,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grads[0], passed.to(grads[0].dtype), 0), None, None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        output, where = torch.ops.aten.max_pool2d_with_indices(
            x, window.kernel, window.stride, window.padding, window.dilation, window.ceil
        )
        ctx.window, ctx.like = window, Like(x)
        width = x.shape[3]
        ctx.save_for_backward((where - window.first(output, width)).to(window.narrowest(width)))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place,), (grad,) = ctx.saved_tensors, grads
        window, image = ctx.window, ctx.like.empty()
        where = place.long() + window.first(grad, image.shape[3])
        made = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, image, window.kernel, window.stride, window.padding, window.dilation, window.ceil, where
        )
        return made, None
