"""Serial residual adapter: a 1x1 convolution of each convolution's output, normalised, added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpeft.adapters import Mergeable, Module
from convpeft.errors import ModelError
from convpeft.methods.residual_parallel import ResidualAdapter
from convpeft.sites import Kind, Site

_EPSILON, _MOMENTUM = 1e-5, 0.1  # those of the released code, which are torch's


class ResidualSerial(ResidualAdapter, name="residual-serial"):
    r"""Add a 1x1 convolution of a convolution's normalised output to that output.

    v = u + adapter(gain * (u - mean) / sqrt(variance + 1e-5) + shift),  u the layer's output
    in evaluation, with g = gain / sqrt(running_var + 1e-5):
    weight' = weight + adapter diag(g) weight,  bias' = bias + adapter (g * (bias - running_mean) + shift)

    weight (out, in/groups, *kernel), bias (out) frozen, a missing bias counts as zero and one comes into being
    adapter (out, out/groups) zeros, block-diagonal in the groups of the layer: a depthwise one has a gain a channel
    gain (out) ones | shift (out) zeros | running_mean (out) zeros | running_var (out) ones

    While the adapter is trained, mean and variance are those of the batch, so it runs beside the layer and the running
    statistics follow; in evaluation, and once another adapter is trained on top, it is the map of weights above.

    Args:
        own_norm: The paper's own BatchNorm before the 1x1 convolution. Without it the adapter is a map of weights in
            training too, weight' = weight + adapter weight, and can always be merged.
        weight_decay: Decay of the adapter, >= 0; it pulls the layer back to the base, more so the larger it is, which
            suits small data sets (the row "decay" of the paper's table). Default: that of the training.
        learned_scale: Train one more factor on what is added, starting at one.

    Raises:
        OptionError: If weight_decay is out of range.
        ModelError: In training with own_norm, if the batch has fewer than two values a channel.

    Source:
        Rebuffi, Bilen, Vedaldi, Learning multiple visual domains with residual adapters, 2017, arXiv 1705.08045,
        section 3.2. Differs: starts at zero, where the released code draws the adapter like any convolution, because
        the network is pretrained without adapters; the BatchNorm that the paper has after each adapter, for each
        task, is the norm policy `train`.
    """

    paper: ClassVar[str] = "Rebuffi et al. 2017, arXiv 1705.08045"
    mergeable: ClassVar[Mergeable] = "eval"
    additive: ClassVar[bool] = False  # what is added depends on the weight
    refused: ClassVar[Mapping[Kind, str]] = {
        **Module.refused,
        "linear": "a 1x1 convolution after it is as large as the layer",
    }
    default_sites: ClassVar[tuple[str, ...]] = ("spatial",)
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, site: Site, *, own_norm: bool = True, weight_decay: float | None = None, learned_scale: bool = False
    ) -> None:
        out = site.out_channels
        super().__init__(site, (out, out // site.groups), weight_decay=weight_decay, learned_scale=learned_scale)
        self.gain = nn.Parameter(torch.empty(out)) if own_norm else None
        self.shift = nn.Parameter(torch.empty(out)) if own_norm else None
        if own_norm:
            self.register_buffer("running_mean", torch.empty(out))
            self.register_buffer("running_var", torch.empty(out))

    @classmethod
    def form(cls, **options: Any) -> type[Module]:
        """Without a norm it is a map of weights in every mode."""
        return cls if options.get("own_norm", True) else ResidualSerialWithoutNorm

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the adapter; the norm starts as a new one does."""
        super().start(weight, bias, generator)
        if self.gain is not None and self.shift is not None:
            nn.init.ones_(self.gain)
            nn.init.zeros_(self.shift)
            nn.init.zeros_(self.running_mean)
            nn.init.ones_(self.running_var)

    @property
    def runs_beside(self) -> bool:
        """Whether the norm goes by the batch: while this adapter is being trained."""
        return self.gain is not None and self.training and self.adapter.requires_grad

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to what running statistics make of them."""
        groups, outputs = self.site.groups, self.adapter.shape[1]
        matrix = self.scaled(self.adapter).view(groups, outputs, outputs)
        constant = bias
        rows = matrix
        if self.gain is not None and self.shift is not None:
            gain = self.gain * torch.rsqrt(self.running_var + _EPSILON)
            rows = matrix * gain.view(groups, 1, outputs)
            centred = -self.running_mean if bias is None else bias - self.running_mean
            constant = gain * centred + self.shift
        filters = weight.reshape(groups, outputs, -1)  # (groups, out/groups, in/groups * positions)
        new = torch.baddbmm(filters, rows, filters).view_as(weight)
        if constant is None:
            return new, None
        moved = (matrix @ constant.view(groups, outputs, 1)).flatten()
        return new, moved if bias is None else bias + moved

    def beside(self, given: Tensor, output: Tensor) -> Tensor:
        """Add the adapter of the output (batch, out, *space), normalised by the batch's own statistics."""
        flat = output.flatten(2)  # (batch, out, positions)
        if flat.shape[0] * flat.shape[2] < 2:
            raise ModelError(
                f"{self.site.describe()}: method {self.method_name!r} normalises by the batch in training and got "
                f"{flat.shape[0] * flat.shape[2]} value a channel. Use larger batches or images, or own_norm=False."
            )
        normed = F.batch_norm(
            flat, self.running_mean, self.running_var, self.gain, self.shift, True, _MOMENTUM, _EPSILON
        )
        added = F.conv1d(normed, self.scaled(self.adapter).unsqueeze(2), groups=self.site.groups)
        return output + added.unflatten(2, output.shape[2:])


class ResidualSerialWithoutNorm(ResidualSerial):
    """The form without a norm, which can be merged in training too."""

    mergeable: ClassVar[Mergeable] = "always"
