"""LoRA on a convolution: one low-rank matrix, reshaped to the kernel."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, check_positive
from convpeft.sites import Site


class Lora(Adapter, name="lora"):
    r"""Add a low-rank matrix, reshaped to the kernel, to each weight.

    delta = scale * reshape(up @ down)

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    up (out, rank) zeros | down (rank, n) Kaiming-uniform, a = sqrt(5)

    On a plain convolution this equals a convolution in -> rank with the full kernel followed by a 1x1
    convolution rank -> out. On a grouped one the groups share `down`; no divisibility is asked for.

    Args:
        rank: Width of the bottleneck, >= 1. Where out * n / (out + n) is smaller, that is taken (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        rslora: Rank-stabilised scale alpha / sqrt(rank) instead.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685, section 4.1; the
        reshape for kernels as in loralib and Saghinadze's map of LoRA-like transfer for CNNs; rsLoRA: Kalajdzievski,
        2023, arXiv 2312.03732. Differs: rank is fitted to each layer, grouped and transposed layers are exact.
    """

    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    additive: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-3

    def __init__(self, site: Site, *, rank: int = 8, alpha: float | None = None, rslora: bool = False) -> None:
        super().__init__(site)
        check_positive("lora", rank=rank, alpha=1.0 if alpha is None else alpha)
        width = min(rank, self.largest_rank(site))
        self.scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if rslora else rank)
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.down = nn.Parameter(torch.empty(width, site.fan_in))

    @classmethod
    def largest_rank(cls, site: Site) -> int:
        """floor(out * n / (out + n)): one more and the two factors hold more numbers than the weight."""
        return site.out_channels * site.fan_in // (site.out_channels + site.fan_in)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw `down`."""
        nn.init.zeros_(self.up)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + delta, bias)."""
        matrix = torch.addmm(weight.flatten(1), self.up, self.down, alpha=self.scale)  # (out, n)
        return matrix.view_as(weight), bias
