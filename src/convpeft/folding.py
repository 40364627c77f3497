"""Fold a frozen norm into the convolution before it, for one forward of a model in training.

The convolution computes what the norm would have made of its output and hands that on; the norm then has nothing left
to do. Parameters, buffers and files stay as they are, and evaluation runs both layers as ever.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.module import _has_any_global_hook  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

from convpeft.adapters import Module
from convpeft.composing import effective
from convpeft.errors import ModelError
from convpeft.frozen_norm import steps_behind
from convpeft.kernels import has_triton, in_checkpoint
from convpeft.slots import slots_of

_thread = threading.local()


@dataclass(frozen=True)
class Fold:
    """The map of a frozen norm: scale * y + shift for each channel, found in float64."""

    norm: nn.Module
    scale: Tensor
    shift: Tensor

    @functools.cached_property
    def factor(self) -> Tensor:
        """The scale in the type in which the layer is computed."""
        return self.scale.to(self.dtype)

    @functools.cached_property
    def _bias(self) -> Tensor:
        return self.shift.to(self.dtype)

    def of_bias(self, bias: Tensor | None) -> Tensor:
        """Bias (out) of the folded layer, in float32 at least, from that of the convolution."""
        return self._bias if bias is None else (self.shift + bias * self.scale).to(self.dtype)

    def of_weight(self, weight: Tensor) -> Tensor:
        """Weight (out, in, *kernel) of the folded layer from that of the convolution."""
        scale = self.scale.to(torch.promote_types(weight.dtype, torch.float32))
        return (weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the layer is computed, at least float32."""
        return torch.promote_types(cast(Any, self.norm).running_mean.dtype, torch.float32)


@dataclass
class _Frame:
    """The forward of one model; `waiting` are norms that have yet to run behind the convolution that did their work."""

    model: int
    active: bool
    masks: TorchFunctionMode | None
    turned: bool = False  # whether the images got another layout
    waiting: dict[int, tuple[nn.Module, Tensor]] = field(default_factory=dict[int, tuple[nn.Module, Tensor]])


def begin(model: nn.Module, *, active: bool, masks: TorchFunctionMode | None = None, turned: bool = False) -> None:
    """Note that the forward of a model has begun in this thread; only if active may its layers fold."""
    _frames().append(_Frame(id(model), active, masks, turned))
    if masks is not None:
        masks.__enter__()


def end(model: nn.Module, *, finished: bool) -> bool:
    """Note that it is over; whether its images had got another layout.

    Raises:
        ModelError: If it has finished and a norm that was folded into a convolution has not run behind it.
    """
    frames = _frames()
    if not frames or frames[-1].model != id(model):
        return False
    frame = frames.pop()
    if frame.masks is not None:
        frame.masks.__exit__(None, None, None)
    if finished and frame.waiting:
        norm = type(next(iter(frame.waiting.values()))[0]).__name__
        raise ModelError(
            f"a {norm} was folded into its convolution and then did not run: the network changed since its first step. "
            "Call convpeft.set_kernels(model, fold=False)."
        )
    return frame.turned


def fold_of(layer: nn.Module, x: Tensor, *, cheap: bool) -> Fold | str | None:
    """What a convolution may fold now; else why it does not, or None where there is nothing to fold.

    Args:
        layer: An adapted convolution in training.
        x: Its input.
        cheap: Whether the kernel builds the folded weight at no cost of its own.
    """
    slots = slots_of(layer)
    frames = _frames()
    if slots.norm is None or not frames or not frames[-1].active or not slots.state.computing.fold:
        return None
    norm, *around = slots.norm
    statistics = slots_of(norm).statistics()
    if not norm.training:
        return "the norm is in evaluation"
    if statistics is not None and statistics[0] == slots.state.training:
        return "the norm's statistics move"
    if any(_looks_in(each) for each in (layer, norm, *around)) or _has_any_global_hook():
        return "hooks look in"
    if in_checkpoint():
        return "it runs in a gradient checkpoint"
    for each in (layer, norm):
        if any(isinstance(part, Module) and part.runs_beside for part in slots_of(each).active()):
            return "a branch runs beside it"
    if not cheap and x.numel() // x.shape[1] < cast(Any, layer)._parameters["weight"][0].numel():
        return "its weight is larger than what the norm runs on"
    with torch.autocast(x.device.type, enabled=False):
        return _read(cast(Any, norm))


def expect(fold: Fold, output: Tensor) -> None:
    """Note the output of a folded convolution, which is that of the norm behind it already."""
    _frames()[-1].waiting[id(fold.norm)] = (fold.norm, output)


def is_done(norm: nn.Module, x: Any) -> bool:
    """Whether the input of a norm is its output already.

    Raises:
        ModelError: If the output of its convolution has gone elsewhere.
    """
    frames = _frames()
    waiting = frames[-1].waiting.pop(id(norm), None) if frames else None
    if waiting is None:
        return False
    if waiting[1] is not x:
        raise ModelError(
            f"a {type(norm).__name__} was folded into its convolution and then got another input: the network changed "
            "since its first step. Call convpeft.set_kernels(model, fold=False)."
        )
    return True


def can_fold(norm: nn.Module) -> bool:
    """Whether the arithmetic of a norm's class is known."""
    base = getattr(norm, "_convpeft_base", type(norm))
    return isinstance(norm, _NormBase) and norm.running_mean is not None and steps_behind(base) is not None


def _read(norm: Any) -> Fold | str:
    weight, bias = effective(norm)
    if any(isinstance(each, Tensor) and each.requires_grad for each in (weight, bias)):
        return "the norm's scale or shift is trained"
    if norm.running_var.is_cuda and has_triton():
        from convpeft.kernels.triton_kernels import affine_of

        return Fold(norm, *affine_of(norm.running_mean, norm.running_var, weight, bias, norm.eps))
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm._parameters["weight"] is not None:
        scale = scale * weight.double()
    shift = -scale * norm.running_mean.double()
    return Fold(norm, scale, shift if bias is None else shift + bias.double())


def _looks_in(layer: Any) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _frames() -> list[_Frame]:
    """Models whose forward is running in this thread, the innermost last."""
    return cast(list[_Frame], _thread.__dict__.setdefault("frames", []))
