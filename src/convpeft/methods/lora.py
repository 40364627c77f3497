"""LoRA on a convolution: one low-rank matrix, reshaped to the kernel."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convpeft.adapters import check_positive
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class Lora(LowRank, name="lora"):
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
        plus_ratio: Learning rate of `up` divided by that of `down`, > 0; LoRA+ proposes 16. The rate that is given is
            that of `down`: lower it with the ratio, or the steps of `up` are too large.
        init: Starting values: `zero` as above; `pissa` starts both factors from the largest singular values and
            vectors of the weight and subtracts that start, so that the layer is unchanged and its principal part is
            trained. The start is stored with the adapter, which is twice as large then.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank, alpha or plus_ratio is out of range.

    Source:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685, section 4.1; the
        reshape for kernels as in loralib and Saghinadze's map of LoRA-like transfer for CNNs; rsLoRA: Kalajdzievski,
        2023, arXiv 2312.03732; LoRA+: Hayou, Ghosh, Yu, 2024, arXiv 2402.12354; PiSSA: Meng, Wang, Zhang, 2024,
        arXiv 2404.02948. Differs: rank is fitted to each layer, grouped and transposed layers are exact, PiSSA
        leaves the base as it is.
    """

    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    learning_rate: ClassVar[float] = 2e-3
    start_up: Tensor | None
    start_down: Tensor | None

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 8,
        alpha: float | None = None,
        rslora: bool = False,
        plus_ratio: float = 1.0,
        init: Literal["zero", "pissa"] = "zero",
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive(self.method_name, rank=rank, alpha=1.0 if alpha is None else alpha, plus_ratio=plus_ratio)
        width = min(rank, self.largest_rank(site))
        self.scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if rslora else rank)
        self.plus_ratio = plus_ratio
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.down = nn.Parameter(torch.empty(width, site.fan_in))
        self.register_buffer("start_up", torch.empty_like(self.up) if init == "pissa" else None)
        self.register_buffer("start_down", torch.empty_like(self.down) if init == "pissa" else None)

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """floor(out * n / (out + n)): one more and the two factors hold more numbers than the weight."""
        return site.out_channels * site.fan_in // (site.out_channels + site.fan_in)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up` and draw `down`, or take both from the weight's singular vectors."""
        nn.init.zeros_(self.up)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        if self.start_up is None or self.start_down is None:
            return
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        width = self.up.shape[1]
        root = (values[:width] / self.scale).sqrt()
        kept = values[:width] > values[0] * 1e-6  # where the weight has no such direction, start as LoRA does
        with torch.no_grad():
            self.up.copy_(torch.where(kept, left[:, :width] * root, 0))
            self.down.copy_(torch.where(kept[:, None], root[:, None] * right[:width], self.down))
        self.start_up.copy_(self.up.detach())
        self.start_down.copy_(self.down.detach())

    def param_groups(self) -> list[dict[str, Any]]:
        """`up` has its own rate where LoRA+ asks for it."""
        rest = [parameter for name, parameter in self.named_parameters() if name != "up"]
        return [{"params": [self.up], "lr_scale": self.plus_ratio}, {"params": rest}]

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """`up` with the scale, and `down`; a PiSSA start is a difference of two products."""
        return None if self.start_up is not None else (self.stepped(self.up, self.scale), self.down)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + delta, bias)."""
        if self.start_up is not None and self.start_down is not None:
            moved = self.up @ self.down - self.start_up @ self.start_down  # (out, n), exactly zero at the start
            return weight + self.scale * self.scaled(moved).view_as(weight), bias
        return super().forward(weight, bias)
