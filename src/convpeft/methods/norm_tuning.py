"""Norm tuning: train the scale and shift of normalisation layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, NormPolicy
from convpeft.sites import Kind, Site


class NormTuning(Adapter, name="norm-tuning"):
    r"""Train the affine parameters of every normalisation layer, as offsets from the pretrained ones.

    weight' = weight + gain, bias' = bias + shift

    weight, bias (channels) frozen | gain, shift (channels) zeros

    Running statistics follow the norm policy: `frozen` (default) keeps them, `adapt` re-estimates them as well.

    Source:
        Frankle, Schwab, Morcos, Training BatchNorm and Only BatchNorm, 2021, arXiv 2003.00152; the row "BN adapt." of
        Rebuffi et al. 2017, arXiv 1705.08045. Differs: offsets, so that weight decay pulls to the pretrained values.
    """

    paper: ClassVar[str] = "Frankle et al. 2021, arXiv 2003.00152"
    additive: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("norm",)
    default_sites: ClassVar[tuple[str, ...]] = ("norm",)
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("frozen", "adapt")
    learning_rate: ClassVar[float] = 5e-3

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.gain = nn.Parameter(torch.empty(site.shape))
        self.shift = nn.Parameter(torch.empty(site.shape)) if site.bias else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero both offsets."""
        for offset in self.parameters():
            nn.init.zeros_(offset)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + gain, bias + shift)."""
        return weight + self.gain, bias if bias is None or self.shift is None else bias + self.shift
