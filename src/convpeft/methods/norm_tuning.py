"""Norm tuning: train the scale and shift of normalisation layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, NormPolicy
from convpeft.sites import Kind, Site


class NormTuning(Additive, name="norm-tuning"):
    r"""Train the affine parameters of every normalisation layer, as offsets from the pretrained ones.

    weight' = weight + gain, bias' = bias + shift

    weight, bias (channels) frozen | gain, shift (channels) zeros

    Running statistics follow the norm policy: `frozen` (default) keeps them, `adapt` re-estimates them as well.

    Args:
        learned_scale: Train one more factor on the whole delta, starting at one.

    Source:
        Frankle, Schwab, Morcos, Training BatchNorm and Only BatchNorm, 2021, arXiv 2003.00152; the row "BN adapt." of
        Rebuffi et al. 2017, arXiv 1705.08045. Differs: offsets, so that weight decay pulls to the pretrained values.
    """

    paper: ClassVar[str] = "Frankle et al. 2021, arXiv 2003.00152"
    kinds: ClassVar[tuple[Kind, ...]] = ("norm",)
    default_sites: ClassVar[tuple[str, ...]] = ("norm",)
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("frozen", "adapt")
    learning_rate: ClassVar[float] = 5e-3

    def __init__(self, site: Site, *, learned_scale: bool = False) -> None:
        super().__init__(site, learned_scale=learned_scale)
        self.gain = nn.Parameter(torch.empty(site.shape))
        self.shift = nn.Parameter(torch.empty(site.shape)) if site.bias else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero both offsets."""
        nn.init.zeros_(self.gain)
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + gain, bias + shift)."""
        shifted = bias if bias is None or self.shift is None else bias + self.scaled(self.shift)
        return weight + self.scaled(self.gain), shifted
