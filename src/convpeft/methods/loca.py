"""LoCA: LoRA across channels, and spatial patterns on the diagonal where a channel meets itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, check_positive
from convpeft.sites import Site


class Loca(Additive, name="loca"):
    r"""Add a low-rank matrix across channels, and a sum of the layer's own spatial patterns for each channel.

    delta[o, i, j] = scale * reshape(up @ down)[o, i, j] + [o is i] * sum_m spatial[i, m] * axes[m, j]
    o is i: the same place within the same group; j over all kernel positions

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    up (out, rank) zeros | down (rank, n) Kaiming-uniform, a = sqrt(5)
    spatial (groups * min(out/groups, in/groups), positions) zeros
    axes (positions, positions) frozen and stored: eigenvectors of the covariance of the standardised kernel slices

    A depthwise layer has one row of `spatial` for each channel. `spatial` learns at a tenth of the rate and without
    weight decay. Where it fits but a low-rank part beside it would make the adapter larger than the layer, as on most
    depthwise layers, `spatial` is alone, under every rank_policy.

    Args:
        rank: Width of the bottleneck, >= 1. At most what keeps the adapter as small as the weight (see rank_policy).
        alpha: Step size of the low-rank part, > 0: scale = alpha / rank, with the rank asked for at this layer, also
            where it was clamped. Default: what makes the scale 1, as the paper's alpha = rank does.
        hierarchical: Share the rank out among the stages of the network by their channels: a stage of C channels gets
            floor(rank * stages * C / sum of C), at least 1, so that the average over the stages is about the rank. C is
            the largest number of outputs of an adapted layer of the stage. A layer of no stage keeps the rank.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        An et al., LoCA, 2026, arXiv 2607.06918. Differs: the paper shares out a rank R in all, floor(R * C / sum of C),
        which leaves early stages without any; here R is rank * stages. Standardised means over all slices at each
        kernel position, which the paper leaves open; grouped layers have their diagonal in each group.
    """

    paper: ClassVar[str] = "An et al. 2026, arXiv 2607.06918"
    learning_rate: ClassVar[float] = 1e-3
    axes: Tensor

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 16,
        alpha: float | None = None,
        hierarchical: bool = True,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("loca", rank=rank, alpha=1.0 if alpha is None else alpha)
        width = min(rank, self.largest_rank(site) or 0)
        self.scale = 1.0 if alpha is None else alpha / rank
        self.up = nn.Parameter(torch.empty(site.out_channels, width)) if width else None
        self.down = nn.Parameter(torch.empty(width, site.fan_in)) if width else None
        positions = math.prod(site.kernel)
        self.spatial = nn.Parameter(torch.empty(site.groups * _shared(site), positions))
        self.register_buffer("axes", torch.empty(positions, positions))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int | None:
        """The largest rank at which both parts hold no more numbers than the weight; None where `spatial` is alone."""
        left = site.out_channels * site.fan_in - site.groups * _shared(site) * math.prod(site.kernel)
        return left // (site.out_channels + site.fan_in) or None

    @classmethod
    def settle(cls, options: dict[str, Any], sites: Sequence[Site], known: Sequence[Site]) -> list[dict[str, Any]]:
        """Each site's options with the rank of its stage."""
        check_positive("loca", rank=options["rank"])
        channels: dict[int, int] = {}
        for site in sites:
            if site.stage is not None:
                channels[site.stage] = max(channels.get(site.stage, 0), site.out_channels)
        if not options["hierarchical"] or not channels:
            return [options for _ in sites]
        rank, total = options["rank"] * len(channels), sum(channels.values())
        ranks = {stage: max(1, rank * width // total) for stage, width in channels.items()}
        return [options if site.stage is None else options | {"rank": ranks[site.stage]} for site in sites]

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up` and `spatial`, draw `down`, take the axes from the weight."""
        nn.init.zeros_(self.spatial)
        if self.up is not None and self.down is not None:
            nn.init.zeros_(self.up)
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        slices = weight.reshape(-1, self.axes.shape[0])
        slices = slices - slices.mean(0)
        spread = slices.square().mean(0).sqrt()
        slices = slices / torch.where(spread > 0, spread, 1)
        axes = torch.linalg.eigh((slices.T @ slices).double()).eigenvectors.T.flip(0)  # rows, largest first
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        self.axes.copy_(axes * largest.sign())  # the sign of an eigenvector is free, so fix it

    def param_groups(self) -> list[dict[str, Any]]:
        """`spatial` at a tenth of the rate, without decay."""
        rest = [parameter for name, parameter in self.named_parameters() if name != "spatial"]
        return [{"params": rest}, {"params": [self.spatial], "lr_scale": 0.1, "weight_decay": 0.0}]

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + delta, bias)."""
        matrix = weight.flatten(1)  # (out, n)
        if self.up is not None and self.down is not None:
            matrix = torch.addmm(matrix, self.scaled(self.up), self.down, alpha=self.scale)
        patterns = self.scaled(self.spatial) @ self.axes  # (channels on the diagonal, positions)
        slices = matrix.reshape(-1, self.axes.shape[0])  # (out * in/groups, positions)
        return slices.index_add(0, self._diagonal(weight.device), patterns).view_as(weight), bias

    def _diagonal(self, device: torch.device) -> Tensor:
        """Numbers of the slices at which a channel meets itself, group by group."""
        groups, inputs = self.site.groups, self.site.shape[1]
        first = torch.arange(groups, device=device) * (self.site.out_channels // groups * inputs)
        return (first[:, None] + torch.arange(_shared(self.site), device=device) * (inputs + 1)).flatten()


def _shared(site: Site) -> int:
    """Channels of one group that are both input and output."""
    return min(site.out_channels // site.groups, site.shape[1])
