"""CHAPTER: a one-dimensional convolution as adapter, beside a layer or after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpeft.adapters import Additive, Branch, Module, check_positive
from convpeft.sites import Kind, Site

Arrangement = Literal["parallel", "serial"]
Matching = Literal["group", "copy"]


class Chapter(Additive, name="chapter"):
    r"""Add a one-dimensional convolution along the last spatial axis, of a layer's input or of its output.

    parallel: v = u + g(x), x the layer's input and u its output, g with the layer's stride, dilation and padding
    weight'[o, i, centre, ..., begin + t] = weight[...] + adapter[...], t the taps of g, by the matching of channels:
    `group`: o takes the in/groups/c inputs of its own slice, c = gcd(out/groups, in/groups) slices in each group
    `copy`: one filter for each input channel, its output copied and concatenated until there are out/groups channels
        in each group, the last copy cut: output o of a group takes input o mod (in/groups)
    serial: v = u + g(u), with stride 1 and zeros beyond the edges; `group`: one filter for each channel,
        `copy`: one filter copied to all channels

    weight (out, in/groups, *kernel) frozen, taps = min(kernel, size of the layer's kernel on that axis) in parallel
    adapter zeros: parallel `group` (out, in/groups/c, taps), `copy` (groups * min(out/groups, in/groups), 1, taps)
    adapter zeros: serial `group` (out, kernel), `copy` (1, kernel)

    The taps are put so that the tap (taps - 1) // 2 of g falls on the layer's (size - 1) // 2; other axes have their
    tap there. A serial g of one tap scales the output and is a map of weights. One of several taps after a spatial
    kernel is no single convolution, because the two meet the border differently: it runs after the layer and is never
    merged.

    Args:
        arrangement: `parallel` to the layer or `serial` after it.
        matching: How the channels of g are matched to the layer's: `group` convolution, or `copy` and concatenate.
        kernel: Taps of g, >= 1.
        learned_scale: Train one more factor on what is added, starting at one.

    Raises:
        OptionError: If kernel is out of range.

    Source:
        Chen et al., CHAPTER: Exploiting Convolutional Neural Network Adapters for Self-supervised Speech Models, 2022,
        arXiv 2212.01282; serial, parallel, the two matchings and the scale as in Saghinadze's map of LoRA-like
        transfer for CNNs. Differs: the paper's layers are one-dimensional, and neither source says which axis to take
        of several, how many taps, or what a copy is where nothing has to be matched (serial); no bottleneck and no
        activation.
    """

    paper: ClassVar[str] = "Chen et al. 2022, arXiv 2212.01282"
    kinds: ClassVar[tuple[Kind, ...]] = ("conv",)
    refused: ClassVar[Mapping[Kind, str]] = {**Module.refused, "linear": "a linear layer has no axis to convolve along"}
    default_sites: ClassVar[tuple[str, ...]] = ("conv",)
    learning_rate: ClassVar[float] = 2e-3

    def __init__(
        self,
        site: Site,
        *,
        arrangement: Arrangement = "parallel",
        matching: Matching = "group",
        kernel: int = 3,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("chapter", kernel=kernel)
        self.copies = matching == "copy"
        outputs, inputs, taps = site.out_channels // site.groups, site.shape[1], min(kernel, site.kernel[-1])
        if self.copies:
            shape = (site.groups * min(outputs, inputs), 1, taps)
        else:
            shape = (site.out_channels, inputs // math.gcd(outputs, inputs), taps)
        self.adapter = nn.Parameter(torch.empty(shape))

    @classmethod
    def form(cls, **options: Any) -> type[Module]:
        """Serial forms have classes of their own; with several taps it is a Branch."""
        if options.get("arrangement", "parallel") == "parallel":
            return cls
        return ChapterScale if options.get("kernel", 3) == 1 else ChapterSerial

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the adapter."""
        nn.init.zeros_(self.adapter)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + adapter at its taps, bias)."""
        columns, device = self._columns(weight.device), weight.device  # (out, inputs of one output)
        adapter = self.scaled(self.adapter)
        if self.copies:  # (groups, filters, 1, taps), repeated to out/groups filters
            outputs = columns.shape[0] // self.site.groups
            filters = adapter.unflatten(0, (self.site.groups, -1))
            adapter = filters.repeat(1, -(-outputs // filters.shape[1]), 1, 1)[:, :outputs].flatten(0, 1)
        kernels = torch.arange(columns.shape[0], device=device)[:, None] * weight.shape[1] + columns
        taps = self._first_tap() + torch.arange(adapter.shape[2], device=device)
        places = kernels[:, :, None] * math.prod(self.site.kernel) + taps  # (out, inputs of one output, taps)
        return weight.flatten().index_add(0, places.flatten(), adapter.flatten()).view_as(weight), bias

    def _columns(self, device: torch.device) -> Tensor:
        """Which inputs of its group each output takes."""
        outputs, inputs = self.site.out_channels // self.site.groups, self.site.shape[1]
        places = torch.arange(self.site.out_channels, device=device) % outputs  # of an output in its group
        if self.copies:
            return (places % inputs)[:, None]
        slices = math.gcd(outputs, inputs)
        width = inputs // slices
        return (places // (outputs // slices) * width)[:, None] + torch.arange(width, device=device)

    def _first_tap(self) -> int:
        """Number, among all kernel positions, of the position of the adapter's first tap."""
        number = 0
        for size in self.site.kernel:
            number = number * size + (size - 1) // 2
        return number - (self.adapter.shape[2] - 1) // 2


class ChapterScale(Chapter):
    r"""CHAPTER after the layer with one tap: v = u + adapter * u, a map of weights."""

    additive: ClassVar[bool] = False  # what is added depends on the weight

    def __init__(
        self, site: Site, *, arrangement: Arrangement, matching: Matching, kernel: int, learned_scale: bool
    ) -> None:
        super().__init__(site, arrangement=arrangement, matching=matching, kernel=kernel, learned_scale=learned_scale)
        self.adapter = nn.Parameter(torch.empty(1 if self.copies else site.out_channels, 1))

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to both plus adapter times both."""
        gain = self.scaled(self.adapter)  # (out, 1) or (1, 1)
        matrix = weight.flatten(1)
        moved = None if bias is None else torch.addcmul(bias, gain.flatten(), bias)
        return torch.addcmul(matrix, gain, matrix).view_as(weight), moved


class ChapterSerial(Branch):
    r"""CHAPTER after the layer with several taps: v = u + g(u)."""

    method_name: ClassVar[str] = "chapter"
    paper: ClassVar[str] = Chapter.paper
    kinds: ClassVar[tuple[Kind, ...]] = Chapter.kinds
    refused: ClassVar[Mapping[Kind, str]] = Chapter.refused
    default_sites: ClassVar[tuple[str, ...]] = Chapter.default_sites
    learning_rate: ClassVar[float] = Chapter.learning_rate

    def __init__(
        self, site: Site, *, arrangement: Arrangement, matching: Matching, kernel: int, learned_scale: bool
    ) -> None:
        super().__init__(site)
        check_positive("chapter", kernel=kernel)
        self.adapter = nn.Parameter(torch.empty(1 if matching == "copy" else site.out_channels, kernel))
        self.learned_scale = nn.Parameter(torch.ones(1)) if learned_scale else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the adapter."""
        nn.init.zeros_(self.adapter)

    def forward(self, given: Tensor, output: Tensor) -> Tensor:
        """Add the filtered output (batch, out, *space) to it."""
        taps, length = self.adapter.shape[1], output.shape[-1]
        adapter = self.adapter if self.learned_scale is None else self.learned_scale * self.adapter
        filters = adapter.expand(output.shape[1], taps)[:, None, None]  # (out, 1, 1, taps)
        rows = output.reshape(*output.shape[:2], -1, length)  # (batch, out, all other axes, length)
        added = F.conv2d(rows, filters, padding=(0, taps // 2), groups=output.shape[1])
        begin = taps // 2 - (taps - 1) // 2  # an even number of taps leaves one place too many
        return output + added.narrow(-1, begin, length).reshape_as(output)
