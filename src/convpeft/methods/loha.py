"""LoHa: the elementwise product of two low-rank matrices, reshaped to the kernel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, check_positive
from convpeft.sites import Site


class Loha(Additive, name="loha"):
    r"""Add the elementwise product of two low-rank matrices: rank up to rank ** 2 for twice the parameters.

    delta = scale * reshape((up_first @ down_first) * (up_second @ down_second))

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    up_first (out, rank) N(0, 0.1) | down_first (rank, n) N(0, 1)
    up_second (out, rank) zeros    | down_second (rank, n) N(0, 1)

    Args:
        rank: Width of both bottlenecks, >= 1. At most out * n / (2 * (out + n)) (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: 1, so that the step size is 1 / rank: a product of two normal factors is large.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Hyeon-Woo, Ye-Bin, Oh, FedPara, 2022, arXiv 2108.06098, proposition 1; starting values as in LyCORIS.
        Differs: the scale is applied once.
    """

    paper: ClassVar[str] = "Hyeon-Woo et al. 2022, arXiv 2108.06098"
    learning_rate: ClassVar[float] = 2e-3

    def __init__(self, site: Site, *, rank: int = 8, alpha: float | None = None, learned_scale: bool = False) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("loha", rank=rank, alpha=1.0 if alpha is None else alpha)
        width, self.scale = min(rank, self.largest_rank(site)), (1.0 if alpha is None else alpha) / rank
        self.up_first = nn.Parameter(torch.empty(site.out_channels, width))
        self.down_first = nn.Parameter(torch.empty(width, site.fan_in))
        self.up_second = nn.Parameter(torch.empty(site.out_channels, width))
        self.down_second = nn.Parameter(torch.empty(width, site.fan_in))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """floor(out * n / (2 * (out + n))): one more and the factors hold more numbers than the weight."""
        return site.out_channels * site.fan_in // (2 * (site.out_channels + site.fan_in))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up_second`, draw the others."""
        nn.init.normal_(self.up_first, std=0.1, generator=generator)
        nn.init.normal_(self.down_first, generator=generator)
        nn.init.zeros_(self.up_second)
        nn.init.normal_(self.down_second, generator=generator)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + delta, bias)."""
        product = (self.up_first @ self.down_first) * (self.scaled(self.up_second) @ self.down_second)  # (out, n)
        return weight + self.scale * product.view_as(weight), bias
