"""DoRA: a low-rank update of the direction of each filter, and a trained gain of its length."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.methods.lora import Lora
from convpeft.sites import Site


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
        ratio = torch.where(after > 0, before / torch.where(after > 0, after, 1), 1)  # (out)
        return (self.gain * ratio).view(-1, *[1] * (weight.ndim - 1)) * direction, bias


def _lengths(weight: Tensor) -> Tensor:
    """Euclidean length of each filter, (out); its gradient at zero is zero."""
    return torch.linalg.vector_norm(weight.flatten(1).contiguous(), dim=1)  # a sum rounds by the layout
