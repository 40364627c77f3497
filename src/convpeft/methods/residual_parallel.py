"""Parallel residual adapter: a 1x1 convolution beside each convolution."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter
from convpeft.sites import Kind, Site


class ResidualParallel(Adapter, name="residual-parallel"):
    r"""Add a 1x1 convolution of the same stride beside a convolution, at the kernel's centre tap.

    weight'[o, i, centre] = weight[o, i, centre] + adapter[o, i]

    weight (out, in/groups, *kernel) frozen | adapter (out, in/groups) zeros

    The centre tap of an axis of size k is (k - 1) // 2. With the usual padding (k - 1) / 2 this is the 1x1
    convolution of the paper; grouped convolutions have one that is block-diagonal in the groups.

    Source:
        Rebuffi, Bilen, Vedaldi, Efficient parametrization of multi-domain deep neural networks, 2018,
        arXiv 1803.10082, equation 4. Differs: starts at zero, because the network is pretrained without adapters; the
        paper's own BatchNorm for each task is the norm policy `train`.
    """

    paper: ClassVar[str] = "Rebuffi et al. 2018, arXiv 1803.10082"
    additive: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("conv",)
    default_sites: ClassVar[tuple[str, ...]] = ("conv",)
    learning_rate: ClassVar[float] = 1e-3

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        strides = [math.prod(site.kernel[axis + 1 :]) for axis in range(len(site.kernel))]
        self.centre = sum((size - 1) // 2 * step for size, step in zip(site.kernel, strides, strict=True))
        self.adapter = nn.Parameter(torch.empty(site.out_channels, site.shape[1]))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the adapter."""
        nn.init.zeros_(self.adapter)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + adapter at the centre tap, bias)."""
        flat = weight.flatten(2)  # (out, in/groups, positions)
        after = flat.shape[2] - self.centre - 1
        return weight + nn.functional.pad(self.adapter.unsqueeze(2), (self.centre, after)).view_as(weight), bias
