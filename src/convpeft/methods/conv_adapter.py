"""Conv-Adapter: a depthwise and a pointwise convolution with a ReLU between them, beside or after a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpeft.adapters import Branch, Module, check_positive
from convpeft.convolving import convolve
from convpeft.sites import Kind, Site

Scheme = Literal["conv-parallel", "conv-sequential", "residual-parallel", "residual-sequential"]

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class ConvAdapter(Branch, name="conv-adapter"):
    r"""Add a depthwise convolution, a ReLU and a 1x1 convolution of the input or output of a layer or block.

    v = u + gain * (up relu(down * x + down_bias) + up_bias),  * a convolution with groups = width
    u the output; x the input in the parallel schemes, u itself in the sequential ones

    channels those of x | width the divisor of channels that is nearest to channels / gamma, at least 1
    down (width, channels/width, *kernel) Kaiming-normal | down_bias (width) zeros
    up (out, width) zeros | up_bias (out) zeros | gain (out) ones

    Parallel to a layer, `down` has the layer's kernel, stride, dilation, padding and padding mode, and is transposed
    where the layer is. After a layer it has its kernel and dilation at stride 1, after or beside a block kernel 3; both
    are padded with zeros to keep the size, and beside a block that shrinks its input the stride is the ratio of the
    sizes, rounded. What is still not of the output's size becomes so by adaptive average pooling after the ReLU.

    Args:
        scheme: `conv-parallel` and `conv-sequential` sit on spatial convolutions, `residual-parallel` and
            `residual-sequential` on whole blocks, or like the others on the convolutions of a model without blocks.
        gamma: How many times fewer channels the bottleneck has, >= 1.
        init: `zero` as above; `paper` draws `up` Kaiming-normal too, which changes the network before any training.

    Raises:
        OptionError: If gamma is out of range.

    Source:
        Chen et al., Conv-Adapter: Exploring Parameter Efficient Transfer Learning for ConvNets, 2024,
        arXiv 2208.07463, section 3; the starting values are those of the released code's ResNet. Differs: starts at
        zero; what is parallel to a convolution joins the convolution's own output, where the released bottleneck adds
        it after the norm and activation behind; groups always divide the channels; ReLU also in ConvNeXt, where the
        released code has GELU.
    """

    paper: ClassVar[str] = "Chen et al. 2024, arXiv 2208.07463"
    kinds: ClassVar[tuple[Kind, ...]] = ("conv",)
    refused: ClassVar[Mapping[Kind, str]] = {
        **Module.refused,
        "linear": "a linear layer has no spatial axes",
        "block": "that needs scheme='residual-parallel' or 'residual-sequential'",
    }
    default_sites: ClassVar[tuple[str, ...]] = ("spatial",)
    learning_rate: ClassVar[float] = 1e-3

    def __init__(
        self,
        site: Site,
        *,
        scheme: Scheme = "conv-parallel",
        gamma: int = 8,
        init: Literal["zero", "paper"] = "zero",
    ) -> None:
        super().__init__(site)
        check_positive("conv-adapter", gamma=gamma)
        self.sequential, self.init = scheme.endswith("sequential"), init
        channels = site.out_channels if self.sequential else site.groups * site.shape[1]
        width = nearest_divisor(channels, channels / gamma)
        self.kernel = (3,) * len(site.kernel) if site.kind == "block" else site.kernel
        self.down = nn.Parameter(torch.empty(width, channels // width, *self.kernel))
        self.down_bias = nn.Parameter(torch.empty(width))
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.up_bias = nn.Parameter(torch.empty(site.out_channels))
        self.gain = nn.Parameter(torch.empty(site.out_channels))

    @classmethod
    def form(cls, **options: Any) -> type[Module]:
        """The residual schemes sit on blocks."""
        return ConvAdapterOnBlocks if str(options.get("scheme", "")).startswith("residual") else cls

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Draw `down`, and `up` if asked; zero the rest but the gain."""
        nn.init.kaiming_normal_(self.down, mode="fan_out", nonlinearity="relu", generator=generator)
        for zero in (self.down_bias, self.up, self.up_bias):
            nn.init.zeros_(zero)
        if self.init == "paper":
            nn.init.kaiming_normal_(self.up, mode="fan_out", nonlinearity="relu", generator=generator)
        nn.init.ones_(self.gain)

    def forward(self, given: Tensor, output: Tensor) -> Tensor:
        """Add the bottleneck of the input (batch, in, *space) or output (batch, out, *space) to the output."""
        size, ones = output.shape[2:], [1] * len(self.kernel)
        if self.sequential or self.site.kind == "block":
            hidden = self._down_to(size, output if self.sequential else given)
        else:
            hidden = convolve(self.site, self._filled(given, size), self.down, groups=self.down.shape[0])
        hidden = F.relu(hidden + self.down_bias.view(1, -1, *ones))  # (batch, width, *space)
        if hidden.shape[2:] != size:
            hidden = _POOLS[len(ones)](hidden, size)
        up = (self.gain.unsqueeze(1) * self.up).unsqueeze(2)  # (out, width, 1)
        return output + F.conv1d(hidden.flatten(2), up, self.gain * self.up_bias).unflatten(2, size)

    def _down_to(self, size: torch.Size, source: Tensor) -> Tensor:
        """Convolve with zeros around, at the stride that leads from the source's size to about this one."""
        dilation = self.site.dilation or (1,) * len(self.kernel)
        steps = strides(source.shape[2:], size)
        reach = [step * (taps - 1) for step, taps in zip(dilation, self.kernel, strict=True)]
        if any(each % 2 for each in reach):  # an even kernel has no middle: one more zero behind
            source = F.pad(source, [side for each in reversed(reach) for side in (0, each % 2)])
        padding = [each // 2 for each in reach]
        return CONVOLUTIONS[len(size)](source, self.down, None, steps, padding, dilation, self.down.shape[0])

    def _filled(self, given: Tensor, size: torch.Size) -> Tensor:
        """Zeros around the input where the layer pads more than it says, as TensorFlow's "same" does on its own."""
        site = self.site
        if site.transposed or site.padding == "same":
            return given
        sides: list[int] = []
        for axis in reversed(range(len(size))):
            held = given.shape[2 + axis] + (0 if isinstance(site.padding, str) else 2 * site.padding[axis])
            needed = (size[axis] - 1) * site.stride[axis] + site.dilation[axis] * (site.kernel[axis] - 1) + 1
            missing = max(0, needed - held)
            sides += [missing // 2, missing - missing // 2]
        return F.pad(given, sides) if any(sides) else given


class ConvAdapterOnBlocks(ConvAdapter):
    """The residual schemes."""

    kinds: ClassVar[tuple[Kind, ...]] = ("block", "conv")
    default_sites: ClassVar[tuple[str, ...]] = ("block",)


def strides(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Ratios of two sizes, rounded, at least 1."""
    return [max(1, (2 * given + made) // (2 * made)) for given, made in zip(before, after, strict=True)]


def nearest_divisor(number: int, wanted: float) -> int:
    """The divisor of a number that is nearest to what is wanted, the smaller of two."""
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    return min(divisors, key=lambda each: abs(each - wanted))
