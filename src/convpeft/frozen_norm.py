"""A BatchNorm by running statistics that keeps nothing of the size of its input for the backward pass."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

_GRAD_OF_INPUT = [True, False, False]


def steps_behind(norm: type[nn.Module]) -> tuple[str, ...] | None:
    """Submodules that a class of norm runs on the normalised numbers; None where its forward is not known.

    timm's norms hold dropout and activation; timm is not imported for that.
    """
    if norm.forward is _BatchNorm.forward:
        return ()
    timm = sys.modules.get("timm.layers.norm_act")
    known = timm is not None and norm.forward is timm.BatchNormAct2d.forward
    return ("drop", "act") if known else None


def frozen_batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalise by statistics that stay as they are: the numbers of `F.batch_norm` in evaluation, and its gradients.

    The derivative is a factor for each channel, so neither input nor output has to be kept. Where weight or bias are
    trained their gradients need the input, and inside a transform or compiler PyTorch's own operation runs.

    Args:
        x: Input (batch, channels, *space).
        mean: Running mean (channels).
        variance: Running variance (channels).
        weight: Scale (channels), or None for one.
        bias: Shift (channels), or None for zero.
        eps: Added to the variance, > 0.

    Returns:
        Output of the shape of the input.
    """
    trained = any(each is not None and each.requires_grad for each in (weight, bias))
    within = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if trained or within or not (x.requires_grad and torch.is_grad_enabled()):
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
    return _FrozenBatchNorm.apply(x, mean, variance, weight, bias, eps)  # type: ignore[no-any-return]


class _FrozenBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(mean, variance, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        mean, variance, weight = ctx.saved_tensors
        grad = grads[0]
        if torch.is_grad_enabled() or grad.device.type != "cpu":
            factor = torch.rsqrt(variance + ctx.eps) * (1.0 if weight is None else weight)
            factor = factor.view(1, -1, *[1] * (grad.ndim - 2))
            if torch.is_grad_enabled():  # a derivative of this derivative is wanted
                made = (grad * factor).to(grad.dtype)
            else:  # one pass; PyTorch's own kernel wants statistics that evaluation does not make
                made = torch.mul(grad, factor, out=torch.empty_like(grad))
            return made, None, None, None, None, None
        # PyTorch's kernel does not look at the input when the statistics are fixed: the gradient stands in for it.
        own = torch.ops.aten.native_batch_norm_backward(
            grad, grad, weight, mean, variance, None, None, False, ctx.eps, _GRAD_OF_INPUT
        )
        return own[0], None, None, None, None, None
