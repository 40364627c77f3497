"""DoRA: a low-rank update of the direction of each filter, and a trained gain of its length."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.methods.lora import Lora
from convpeft.sites import Site

_CANCELLED = 1e-2  # share of a filter's squared length that is left


class Dora(Lora, name="dora"):
    r"""Update the direction of each filter by LoRA and its length by a gain.

    V = weight + scale * reshape(up @ down), weight'[o] = gain[o] * |weight[o]| / |V[o]| * V[o]

    weight (out, in/groups, *kernel) frozen | gain (out) ones
    up (out, rank) zeros | down (rank, n) Kaiming-uniform, n = in/groups * prod(kernel)

    Both lengths come from the same operations, so their ratio is exactly 1 at the start; a filter of zeros keeps
    the ratio 1.

    Args:
        rank: Width of the bottleneck, >= 1. Where out * n / (out + n) is smaller, that is taken (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        rslora: Rank-stabilised scale alpha / sqrt(rank) instead.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, arXiv 2402.09353, equation 5. Differs: the
        gain is relative to the pretrained length, and the gradient through |V| is kept (the paper drops it to save
        memory), so that the gradient is that of the function.
    """

    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2402.09353"
    additive: ClassVar[bool] = False

    def __init__(self, site: Site, *, rank: int = 8, alpha: float | None = None, rslora: bool = False) -> None:
        super().__init__(site, rank=rank, alpha=alpha, rslora=rslora)
        self.gain = nn.Parameter(torch.empty(site.out_channels))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw `down`, set the gain to one."""
        super().start(weight, bias, generator)
        nn.init.ones_(self.gain)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (gain * |weight| / |V| * V, bias)."""
        direction, _ = super().forward(weight, bias)
        before, after = _lengths(weight), _lengths(direction)
        stretch = (self.gain * _ratio(before, after)).view(-1, *[1] * (weight.ndim - 1))
        # without a gradient to come, no second tensor of the weight's size
        return stretch * direction if torch.is_grad_enabled() else direction.mul_(stretch), bias

    def pull_back(self, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of up, down and gain from that of the new weight.

        With c = gain * ratio, that of V is c * grad - k * V, where k[o] = c[o] * <grad[o], V[o]> / |V[o]|^2. Neither
        is built: V = weight + up @ down is only multiplied, by the factors and by itself.
        """
        up, down = self.scale * self.up, self.down
        weight, grad = weight.flatten(1), grad.flatten(1)  # (out, n)
        seen = weight @ down.T
        of_direction = torch.addmm(seen, up, down @ down.T)  # V @ down.T, (out, rank)
        of_grad = grad @ down.T
        before = _lengths(weight)
        square = before.square() + (up * (seen + of_direction)).sum(1)
        if bool((square < _CANCELLED * before.square()).any()):  # digits are lost: measure V itself
            square = _lengths(torch.addmm(weight, up, down)).square()
        along = torch.bmm(grad.unsqueeze(1), weight.unsqueeze(2)).view(-1) + (up * of_grad).sum(1)  # <grad, V>, (out)
        ratio = _ratio(before, square.sqrt())
        stretch = (self.gain * ratio).unsqueeze(1)  # c, (out, 1)
        turned = stretch * (along / torch.where(square > 0, square, 1)).unsqueeze(1)  # k, (out, 1)
        of_up = stretch * of_grad - turned * of_direction
        back = (turned * up).T  # (rank, out)
        of_down = (stretch * up).T @ grad - back @ weight - back @ up @ down
        return self.scale * of_up, of_down, ratio * along


def _ratio(before: Tensor, after: Tensor) -> Tensor:
    """Length of each filter before through that after, one where there is none, (out)."""
    return torch.where(after > 0, before / torch.where(after > 0, after, 1), 1)


def _lengths(weight: Tensor) -> Tensor:
    """Euclidean length of each filter, (out); its gradient at zero is zero."""
    return torch.linalg.vector_norm(weight.flatten(1).contiguous(), dim=1)  # a sum rounds by the layout
