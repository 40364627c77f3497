"""Parallel residual adapter: a 1x1 convolution beside each convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, Module
from convpeft.errors import OptionError
from convpeft.sites import Kind, Site


class ResidualAdapter(Additive):
    """What both residual adapters have: a matrix `adapter` that starts at zero and has a weight decay of its own."""

    kinds: ClassVar[tuple[Kind, ...]] = ("conv",)
    learning_rate: ClassVar[float] = 2e-3

    def __init__(self, site: Site, shape: tuple[int, int], *, weight_decay: float | None, learned_scale: bool) -> None:
        super().__init__(site, learned_scale=learned_scale)
        if weight_decay is not None and not 0 <= weight_decay < math.inf:
            raise OptionError(
                f"method {self.method_name!r}: weight_decay={weight_decay!r} is out of range, it must be 0 or more."
            )
        self.weight_decay = weight_decay
        self.adapter = nn.Parameter(torch.empty(shape))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the adapter."""
        nn.init.zeros_(self.adapter)

    def param_groups(self) -> list[dict[str, Any]]:
        """The adapter has its own decay where one is given."""
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        rest = [parameter for name, parameter in self.named_parameters() if name != "adapter"]
        return [{"params": [self.adapter], **decay}, {"params": rest}]


class ResidualParallel(ResidualAdapter, name="residual-parallel"):
    r"""Add a 1x1 convolution of the same stride beside a convolution, at the kernel's centre tap.

    weight'[o, i, centre] = weight[o, i, centre] + adapter[o, i]

    weight (out, in/groups, *kernel) frozen | adapter (out, in/groups) zeros

    The centre tap of an axis of size k is (k - 1) // 2. With the usual padding (k - 1) / 2 this is the 1x1
    convolution of the paper, which has one beside every spatial convolution; grouped convolutions have one that is
    block-diagonal in the groups.

    Args:
        weight_decay: Decay of the adapter, >= 0; it pulls the layer back to the base, more so the larger it is, which
            suits small data sets. Default: that of the training.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If weight_decay is out of range.

    Source:
        Rebuffi, Bilen, Vedaldi, Efficient parametrization of multi-domain deep neural networks, 2018,
        arXiv 1803.10082, equation 4. Differs: starts at zero, because the network is pretrained without adapters; the
        paper's own BatchNorm for each task is the norm policy `train`.
    """

    paper: ClassVar[str] = "Rebuffi et al. 2018, arXiv 1803.10082"
    refused: ClassVar[Mapping[Kind, str]] = {
        **Module.refused,
        "linear": "a 1x1 convolution beside it is as large as the layer",
    }
    default_sites: ClassVar[tuple[str, ...]] = ("spatial",)

    def __init__(self, site: Site, *, weight_decay: float | None = None, learned_scale: bool = False) -> None:
        super().__init__(
            site, (site.out_channels, site.shape[1]), weight_decay=weight_decay, learned_scale=learned_scale
        )
        strides = [math.prod(site.kernel[axis + 1 :]) for axis in range(len(site.kernel))]
        self.centre = sum((size - 1) // 2 * step for size, step in zip(site.kernel, strides, strict=True))

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + adapter at the centre tap, bias)."""
        flat = weight.flatten(2)  # (out, in/groups, positions)
        after = flat.shape[2] - self.centre - 1
        delta = nn.functional.pad(self.scaled(self.adapter).unsqueeze(2), (self.centre, after))
        return weight + delta.view_as(weight), bias
