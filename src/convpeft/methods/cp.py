"""CPD: a canonical polyadic update of the kernel."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import check_positive
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class CP(LowRank, name="cp"):
    r"""Add a sum of rank-one tensors, each an output vector times an input vector times one spatial pattern.

    delta[o, i, j] = scale * sum_r up[o, r] * down[r, i] * spatial[r, j],  j over all kernel positions

    weight (out, in/groups, *kernel) frozen | up (out, rank) zeros
    down (rank, in/groups) Kaiming-uniform  | spatial (rank, prod(kernel)) Kaiming-uniform

    As layers: a 1x1 convolution to rank channels, a depthwise one with the kernel, a 1x1 one to out channels. On a
    linear layer `spatial` has one position and the update is LoRA's with one more gain.

    Args:
        rank: Number of rank-one terms, >= 1. At most out * n / (out + in/groups + prod(kernel)) (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Saghinadze, LoRA-like parameter-efficient transfer learning for CNNs, CPD formula; the decomposition of
        kernels: Lebedev et al., 2015, arXiv 1412.6553. Differs: only `up` starts at zero.
    """

    paper: ClassVar[str] = "Lebedev et al. 2015, arXiv 1412.6553"
    learning_rate: ClassVar[float] = 4e-3

    def __init__(self, site: Site, *, rank: int = 8, alpha: float | None = None, learned_scale: bool = False) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("cp", rank=rank, alpha=1.0 if alpha is None else alpha)
        width, self.scale = min(rank, self.largest_rank(site)), 1.0 if alpha is None else alpha / rank
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.down = nn.Parameter(torch.empty(width, site.shape[1]))
        self.spatial = nn.Parameter(torch.empty(width, math.prod(site.kernel)))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest rank at which the factors hold no more numbers than the weight."""
        factors = site.out_channels + site.shape[1] + math.prod(site.kernel)
        return site.out_channels * site.fan_in // factors

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw the others."""
        nn.init.zeros_(self.up)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        nn.init.kaiming_uniform_(self.spatial, a=math.sqrt(5), generator=generator)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` with the scale, and the terms' patterns (rank, n)."""
        patterns = torch.einsum("ri,rj->rij", self.down, self.spatial).flatten(1)  # (rank, in/groups * positions)
        return self.stepped(self.up, self.scale), patterns
