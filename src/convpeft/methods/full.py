"""Full fine-tuning: the baseline every adapter is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, NormPolicy
from convpeft.sites import Kind, Site


class Full(Adapter, name="full"):
    r"""Train every weight itself, starting from the pretrained one.

    weight' = own weight, bias' = own bias

    own weight, own bias: copies of the base's, trained; the base stays underneath, so `disabled` gives it back.

    Weight decay acts on the weight, as in ordinary fine-tuning, not on the distance from the pretrained one. Norms
    are trained by the norm policy `train`, the default here; loose parameters (layer scale and the like) are included.

    Source:
        Ordinary fine-tuning. As a delta it would be a different, regularised baseline.
    """

    paper: ClassVar[str] = "the baseline"
    replaces: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("conv", "linear", "parameter")
    refused: ClassVar[Mapping[Kind, str]] = {**Adapter.refused, "norm": "norms are trained by the norm policy 'train'"}
    default_sites: ClassVar[tuple[str, ...]] = ("conv", "linear", "parameter")
    default_exclude: ClassVar[tuple[str, ...]] = ()
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("train", "frozen", "adapt")
    learning_rate: ClassVar[float] = 5e-4

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.weight = nn.Parameter(torch.empty(site.shape))
        bias_shape = site.shape if site.kind == "norm" else site.shape[:1]
        self.bias = nn.Parameter(torch.empty(bias_shape)) if site.bias else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Copy the layer's own tensors."""
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to the trained copies."""
        return self.weight, bias if self.bias is None else self.bias
