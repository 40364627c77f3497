"""TKD-CPD: a Tucker-2 update whose core is a canonical polyadic sum."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import check_positive
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class CPTucker(LowRank, name="cp-tucker"):
    r"""Add a Tucker-2 update with a core of rank-one terms: two bottlenecks with a depthwise kernel between them.

    delta[o, i, j] = scale * sum_abr up[o, a] * core_up[a, r] * spatial[r, j] * core_down[r, b] * down[b, i],
    j over all kernel positions

    weight (out, in/groups, *kernel) frozen           | up (out, rank) zeros
    core_up (rank, core_rank) Kaiming-uniform         | spatial (core_rank, prod(kernel)) Kaiming-uniform
    core_down (core_rank, input rank) Kaiming-uniform | down (input rank, in/groups) Kaiming-uniform

    As layers: 1x1 convolutions to the input rank and to core_rank channels, a depthwise one with the kernel, 1x1 ones
    to rank and to out channels. The input rank is the rank, but no more than in/groups: a depthwise layer has one input
    a filter and keeps its rank on the output side.

    Args:
        rank: Width of both bottlenecks, >= 1. At most what keeps the factors as small as the weight (see rank_policy).
        core_rank: Rank-one terms of the core, >= 1. No more are kept than any core of its shape can need.
            Default: the rank.
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank, core_rank or alpha is out of range.

    Source:
        Saghinadze, LoRA-like parameter-efficient transfer learning for CNNs, TKD-CPD formula; the decomposition of
        kernels: Phan et al., Stable Low-rank Tensor Decomposition for Compression of Convolutional Neural Network,
        2020, arXiv 2008.05441. Differs: both bottlenecks have one rank, only `up` starts at zero.
    """

    paper: ClassVar[str] = "Phan et al. 2020, arXiv 2008.05441"
    learning_rate: ClassVar[float] = 4e-3

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 8,
        core_rank: int | None = None,
        alpha: float | None = None,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        terms_asked = rank if core_rank is None else core_rank
        check_positive("cp-tucker", rank=rank, core_rank=terms_asked, alpha=1.0 if alpha is None else alpha)
        self.scale = 1.0 if alpha is None else alpha / rank
        width, inner, terms = _widths(site, min(rank, self.largest_rank(site, core_rank=core_rank)), core_rank)
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.core_up = nn.Parameter(torch.empty(width, terms))
        self.spatial = nn.Parameter(torch.empty(terms, math.prod(site.kernel)))
        self.core_down = nn.Parameter(torch.empty(terms, inner))
        self.down = nn.Parameter(torch.empty(inner, site.shape[1]))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest rank up to out at which the factors hold no more numbers than the weight."""

        def size(rank: int) -> int:
            width, inner, terms = _widths(site, rank, options.get("core_rank"))
            inside = terms * (width + inner + math.prod(site.kernel))
            return site.out_channels * width + inside + inner * site.shape[1]

        return bisect_right(range(1, site.out_channels + 1), math.prod(site.shape), key=size)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw the others."""
        nn.init.zeros_(self.up)
        for factor in (self.core_up, self.spatial, self.core_down, self.down):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both sides of the core's terms: (out, core_rank) with the scale, and (core_rank, n)."""
        inputs = self.core_down @ self.down  # (core_rank, in/groups)
        patterns = (inputs.unsqueeze(2) * self.spatial.unsqueeze(1)).flatten(1)  # (core_rank, in/groups * positions)
        outputs = self.stepped(self.up, self.scale) @ self.core_up  # (out, core_rank)
        return outputs, patterns


def _widths(site: Site, rank: int, core_rank: int | None) -> tuple[int, int, int]:
    """Rank on the output side, rank on the input side, terms of the core; none wider than it can be of use."""
    inner, positions = min(rank, site.shape[1]), math.prod(site.kernel)
    needed = min(rank * inner, rank * positions, inner * positions)  # rank of any (rank, inner, positions) tensor
    return rank, inner, min(rank if core_rank is None else core_rank, needed)
