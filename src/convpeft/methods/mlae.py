"""MLAE: rank-one experts with a trained weight each, masked at random while training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from convpeft.adapters import Hook, Progress, check_positive
from convpeft.errors import OptionError
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class Mlae(LowRank, name="mlae"):
    r"""Add a sum of rank-one experts, each with a trained weight and left out of some training steps.

    delta = scale * reshape(sum_r mask[r] / (1 - dropout) * weight[r] * outer(up[:, r], down[r]))

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    up (out, rank) zeros | down (rank, n) Kaiming-uniform | expert (rank) ones, the weights | mask (rank) 0 or 1

    In evaluation no expert is masked. A mask holds for one optimiser step, all its batches and recomputations
    included, and is drawn from the adapter's own source, so the base's random numbers stay as they are.

    Args:
        rank: Number of experts, >= 1. Where out * n / (out + n + 1) is smaller, that is taken (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        dropout: Probability that an expert is left out of a training step, 0 <= dropout < 1.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank, alpha or dropout is out of range.

    Source:
        Wang et al., MLAE: Masked LoRA Experts for Visual Parameter-Efficient Fine-Tuning, 2024, arXiv 2405.18897,
        section 3. Differs: the experts' weights start at one and `alpha` sets the scale; masks change at optimiser
        steps, not at every forward pass, which is the same without accumulation.
    """

    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2405.18897"
    learning_rate: ClassVar[float] = 2e-3
    mask: Tensor
    draws: Tensor
    seed: Tensor

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.5,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("mlae", rank=rank, alpha=1.0 if alpha is None else alpha)
        if not 0 <= dropout < 1:
            raise OptionError(f"method 'mlae': dropout={dropout!r} is out of range, it must be at least 0 and below 1.")
        width, self.scale = min(rank, self.largest_rank(site)), 1.0 if alpha is None else alpha / rank
        self.dropout = dropout
        self.hooks: frozenset[Hook] = frozenset(("after_step",) if dropout > 0 else ())
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.down = nn.Parameter(torch.empty(width, site.fan_in))
        self.expert = nn.Parameter(torch.empty(width))
        self.register_buffer("mask", torch.ones(width), persistent=False)
        self.register_buffer("draws", torch.zeros(1, dtype=torch.int64), persistent=False)
        self.register_buffer("seed", torch.zeros(1, dtype=torch.int64))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest number of experts that hold no more numbers than the weight."""
        return site.out_channels * site.fan_in // (site.out_channels + site.fan_in + 1)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw `down` and the first mask, weigh every expert with one."""
        nn.init.zeros_(self.up)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        nn.init.ones_(self.expert)
        self.seed.random_(0, 2**31, generator=generator)
        self.draw_mask()

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` with the experts' weights and the scale, and `down`."""
        expert = self.expert * self.mask / (1 - self.dropout) if self.training else self.expert
        return self.scaled(self.up) * (self.scale * expert), self.down

    @classmethod
    def after_step(
        cls, parts: Sequence[Self], progress: Progress | None, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Draw the masks of the next step."""
        for part in parts:
            part.draw_mask()

    def draw_mask(self) -> None:
        """Leave each expert out with probability `dropout`; a function of seed and number of draws."""
        generator = torch.Generator().manual_seed(int(self.seed.item()) * 2**20 + int(self.draws.item()))
        self.draws += 1
        self.mask.copy_((torch.rand(self.mask.shape, generator=generator) >= self.dropout).to(self.mask.dtype))
