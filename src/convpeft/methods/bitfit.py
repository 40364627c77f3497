"""BitFit: train biases only."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, NormPolicy
from convpeft.sites import Kind, Site


class BitFit(Additive, name="bitfit"):
    r"""Add a trained offset to every bias of the network, those of its norms included.

    bias' = bias + offset

    bias (out) frozen, or absent with create=True | offset (out) zeros

    Its gradient needs no stored activation.

    Args:
        create: Also give a bias to layers that have none. In front of a norm with live statistics such a bias has
            no effect, and a frozen norm's own bias does the same work; useful for networks without norms.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Source:
        Ben Zaken, Ravfogel, Goldberg, BitFit, 2022, arXiv 2106.10199. Differs: for a CNN, whose convolutions mostly
        have no bias, the biases of the norms count as biases.
    """

    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv 2106.10199"
    kinds: ClassVar[tuple[Kind, ...]] = ("conv", "linear", "norm")
    default_sites: ClassVar[tuple[str, ...]] = ("conv", "linear", "norm")
    maps_weight: ClassVar[bool] = False
    default_exclude: ClassVar[tuple[str, ...]] = ()
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("frozen", "adapt")
    learning_rate: ClassVar[float] = 5e-3

    def __init__(self, site: Site, *, create: bool = False, learned_scale: bool = False) -> None:
        super().__init__(site, learned_scale=learned_scale)
        trains = site.bias or (create and site.kind != "norm")
        shape = site.shape if site.kind == "norm" else site.shape[:1]
        self.offset = nn.Parameter(torch.empty(shape)) if trains else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the offset."""
        if self.offset is not None:
            nn.init.zeros_(self.offset)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight, bias + offset)."""
        if self.offset is None:
            return weight, bias
        offset = self.scaled(self.offset)
        return weight, offset if bias is None else bias + offset
