"""Lite residual: a small branch beside a block that works on half the resolution, cheap in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpeft.adapters import Branch, Module, check_positive
from convpeft.errors import OptionError
from convpeft.methods.conv_adapter import CONVOLUTIONS, nearest_divisor, strides
from convpeft.sites import Kind, Site

_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class LiteResidual(Branch, name="lite-residual"):
    r"""Add a branch of a pooled input to a block: grouped convolution, norm, ReLU, 1x1 convolution, norm, upsampling.

    v = u + upsample(norm_2(mix relu(norm_1(filters * pool(x))))),  x the block's input, u its output, * a convolution

    filters (width, in/2, *kernel) Kaiming-normal, two groups, or one where width or in is odd
    mix (out, width) Kaiming-normal | inner_gain (width) ones | inner_shift (width) zeros
    outer_gain (out) zeros | outer_shift (out) zeros

    The pool averages two by two, along each axis that is longer than one. The grouped convolution has the stride of the
    block, which is the ratio of its sizes, rounded, and pads with zeros, so that a kernel larger than the map is no
    error. Norms are group norms of about eight channels a group, the nearest number that divides. Upsampling is linear
    in one to three dimensions, to the size of u.

    What training has to keep is the pooled input and two small maps: less than an adapter at full resolution would.
    The paper trains biases too: `lite-residual+bitfit`.

    Args:
        width: Channels between the convolutions, >= 1, at most those of the input. The paper has as many as the input,
            in a network of narrow blocks; on wide ones, such as ResNet's, that would be larger than the network.
        kernel: Size of the grouped convolution on each axis, odd, >= 1.
        standardise: Bring each filter of both convolutions to mean 0 and variance 1 before use, as the paper does where
            group norms replace batch norms.

    Raises:
        OptionError: If width is out of range, or kernel is, or is even.

    Source:
        Cai et al., TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning, 2020, arXiv 2007.11622,
        section 3.2. Differs: starts at zero without the paper's pretraining of the branches; the network's own norms
        and weights stay as they are, where the paper retrains it with group norms and stores it in 8 bits; the kernel
        stays whole on small maps, where the released code shrinks it to the map of a given image size.
    """

    paper: ClassVar[str] = "Cai et al. 2020, arXiv 2007.11622"
    kinds: ClassVar[tuple[Kind, ...]] = ("block", "conv")
    refused: ClassVar[Mapping[Kind, str]] = {**Module.refused, "linear": "a linear layer has no spatial axes"}
    default_sites: ClassVar[tuple[str, ...]] = ("block",)
    learning_rate: ClassVar[float] = 2e-3

    def __init__(self, site: Site, *, width: int = 32, kernel: int = 5, standardise: bool = True) -> None:
        super().__init__(site)
        check_positive("lite-residual", width=width)
        if kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"method 'lite-residual': kernel={kernel!r} is out of range, it must be odd and above 0.")
        inputs, outputs = site.groups * site.shape[1], site.out_channels
        inside = min(width, inputs)
        self.standardise = standardise
        self.groups = 2 if inputs % 2 == inside % 2 == 0 else 1
        self.inner_groups, self.outer_groups = (nearest_divisor(each, each / 8) for each in (inside, outputs))
        self.filters = nn.Parameter(torch.empty(inside, inputs // self.groups, *[kernel] * len(site.kernel)))
        self.inner_gain = nn.Parameter(torch.empty(inside))
        self.inner_shift = nn.Parameter(torch.empty(inside))
        self.mix = nn.Parameter(torch.empty(outputs, inside))
        self.outer_gain = nn.Parameter(torch.empty(outputs))
        self.outer_shift = nn.Parameter(torch.empty(outputs))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Draw both convolutions; the gain of the last norm is zero."""
        for drawn in (self.filters, self.mix):
            nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu", generator=generator)
        nn.init.ones_(self.inner_gain)
        for zero in (self.inner_shift, self.outer_gain, self.outer_shift):
            nn.init.zeros_(zero)

    def forward(self, given: Tensor, output: Tensor) -> Tensor:
        """Add the branch of the input (batch, in, *space) to the output (batch, out, *space)."""
        dims, size = len(self.site.kernel), output.shape[2:]
        steps = strides(given.shape[2:], size)
        pooled = _POOLS[dims](given, [min(2, length) for length in given.shape[2:]])
        padding = self.filters.shape[2] // 2
        hidden = CONVOLUTIONS[dims](pooled, self._used(self.filters), None, steps, padding, 1, self.groups)
        hidden = F.relu(_normed(hidden, self.inner_groups, self.inner_gain, self.inner_shift))
        made = F.conv1d(hidden.flatten(2), self._used(self.mix).unsqueeze(2))  # (batch, out, positions)
        made = _normed(made, self.outer_groups, self.outer_gain, self.outer_shift).unflatten(2, hidden.shape[2:])
        if made.shape[2:] != size:
            made = F.interpolate(made, size, mode=_MODES[dims], align_corners=False)
        return output + made

    def _used(self, weight: Tensor) -> Tensor:
        """The filters as they are used; one of a single number has no variance and stays as it is."""
        length = math.prod(weight.shape[1:])
        if not self.standardise or length == 1:
            return weight
        return F.layer_norm(weight.flatten(1), (length,), eps=1e-10).view_as(weight)


def _normed(x: Tensor, groups: int, gain: Tensor, shift: Tensor) -> Tensor:
    """Group norm; unlike `F.group_norm` it takes groups of one number, which become the shift."""
    return torch.group_norm(x, groups, gain, shift, 1e-5)
