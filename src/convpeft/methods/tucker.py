"""TKD: a Tucker-2 update of the kernel."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import check_positive
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class Tucker(LowRank, name="tucker"):
    r"""Add a Tucker-2 update that keeps the spatial axes of the kernel whole.

    delta[o, i, j] = scale * sum_ab up[o, a] * core[a, b, j] * down[b, i],  j over all kernel positions

    weight (out, in/groups, *kernel) frozen     | up (out, rank) zeros
    core (rank, rank, prod(kernel)) Kaiming-uniform | down (rank, in/groups) Kaiming-uniform

    As layers: a 1x1 convolution to rank channels, one with the kernel among them, a 1x1 one to out channels.

    Args:
        rank: Width of both bottlenecks, 1 <= rank <= min(out, in/groups), and no larger than what keeps the factors
            as small as the weight (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Saghinadze, LoRA-like parameter-efficient transfer learning for CNNs, TKD formula; the decomposition of
        kernels: Kim et al., 2016, arXiv 1511.06530. Differs: both ranks are equal, only `up` starts at zero.
    """

    paper: ClassVar[str] = "Kim et al. 2016, arXiv 1511.06530"
    learning_rate: ClassVar[float] = 4e-3

    def __init__(self, site: Site, *, rank: int = 8, alpha: float | None = None, learned_scale: bool = False) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("tucker", rank=rank, alpha=1.0 if alpha is None else alpha)
        width, self.scale = min(rank, self.largest_rank(site)), 1.0 if alpha is None else alpha / rank
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.core = nn.Parameter(torch.empty(width, width, math.prod(site.kernel)))
        self.down = nn.Parameter(torch.empty(width, site.shape[1]))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest rank up to min(out, in/groups) at which the factors hold no more numbers than the weight."""
        sides, positions = site.out_channels + site.shape[1], math.prod(site.kernel)
        size = site.out_channels * site.fan_in
        fitting = (math.isqrt(sides * sides + 4 * positions * size) - sides) // (2 * positions)
        return min(site.out_channels, site.shape[1], fitting)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw the others."""
        nn.init.zeros_(self.up)
        nn.init.kaiming_uniform_(self.core, a=math.sqrt(5), generator=generator)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` with the scale, and the core with `down`, (rank, n)."""
        inner = torch.einsum("abj,bi->aij", self.core, self.down)  # (rank, in/groups, positions)
        return self.stepped(self.up, self.scale), inner.flatten(1)
