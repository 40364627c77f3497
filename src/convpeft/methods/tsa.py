"""TSA: task-specific adapters beside the spatial convolutions, and a map of the features before the classifier."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, check_positive
from convpeft.sites import Site


class Tsa(Additive, name="tsa"):
    r"""Add a 1x1 convolution beside each spatial convolution, and map the features linearly before the classifier.

    weight'[o, i, centre] = weight[o, i, centre] + adapter[o, i]
    at the head: weight'[o, i] = weight[o, i] + sum_c weight[o, c] * offset[c, i]

    weight (out, in/groups, *kernel) frozen, the head's (classes, in) frozen or fresh
    adapter `matrix`: (out, in/groups) zeros
    adapter `channel`: one gain where o and i are the same place of a group, (groups * min(out/groups, in/groups)) zeros
    offset (in, in) zeros, the paper's map less the identity

    The centre tap of an axis of size k is (k - 1) // 2. With the usual padding (k - 1) / 2 this is the 1x1
    convolution of the same stride; a grouped one is block-diagonal. A linear layer that is not the head counts as 1x1.

    Args:
        form: Adapters are a whole `matrix`, or one gain for each `channel`.
        init: Adapters start at `zero`, or as the `paper` has it at 1e-4 times the identity in each group, which
            changes the network a little before any training.
        align: Map the features before the classifier too.
        align_rate: Learning rate of that map divided by that of the adapters, > 0. The paper has 10, with Adadelta and
            a loss that ignores the length of the features; with AdamW and many features 1 is steadier.
        learned_scale: Train one more factor on each adapter beside a convolution, starting at one.

    Raises:
        OptionError: If align_rate is out of range.

    Source:
        Li, Liu, Bilen, Cross-domain Few-shot Learning with Task-specific Adapters, 2022, arXiv 2107.00358; the map
        before the classifier: Li, Liu, Bilen, Universal Representation Learning from Multiple Domains for Few-shot
        Classification, 2021, arXiv 2103.13841. Differs: starts at zero by default; the channel form also takes layers
        of other out than in, where the paper falls back on the matrix; a linear classifier stands in for the nearest
        class centre, so the map goes into its weight, which adds no layer; the stem is adapted like the other
        convolutions. The paper trains 40 steps of Adadelta at rate 0.1, the map at 1.
    """

    paper: ClassVar[str] = "Li et al. 2022, arXiv 2107.00358"
    additive: ClassVar[bool] = False  # at the head it depends on the weight
    after_head: ClassVar[bool] = True
    default_sites: ClassVar[tuple[str, ...]] = ("spatial", "head")
    default_exclude: ClassVar[tuple[str, ...]] = ()
    learning_rate: ClassVar[float] = 1e-3

    def __init__(
        self,
        site: Site,
        *,
        form: Literal["matrix", "channel"] = "matrix",
        init: Literal["zero", "paper"] = "zero",
        align: bool = True,
        align_rate: float = 1.0,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale and not site.head)
        check_positive("tsa", align_rate=align_rate)
        self.rate = align_rate if site.head else 1.0
        self.channelwise, self.init, inputs = form == "channel", init, site.shape[1]
        shape = (len(self._diagonal()),) if self.channelwise else site.shape[:2]
        self.adapter = None if site.head else nn.Parameter(torch.empty(shape))
        self.offset = nn.Parameter(torch.empty(inputs, inputs)) if site.head and align else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero everything, or start the adapters at a small identity."""
        if self.offset is not None:
            nn.init.zeros_(self.offset)
        if self.adapter is not None:
            nn.init.zeros_(self.adapter)
            if self.init == "paper":
                with torch.no_grad():
                    self.adapter.view(-1)[slice(None) if self.channelwise else self._diagonal()] = 1e-4

    def param_groups(self) -> list[dict[str, Any]]:
        """The map before the classifier has a rate of its own."""
        return [{"params": list(self.parameters()), "lr_scale": self.rate}]

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + adapter at the centre tap, bias), or at the head to that with the offset."""
        if self.offset is not None:
            matrix = weight.flatten(1)  # (classes, in)
            return torch.addmm(matrix, matrix, self.offset).view_as(weight), bias
        if self.adapter is None:
            return weight, bias
        adapter, device = self.scaled(self.adapter).flatten(), weight.device
        kernels = self._diagonal(device) if self.channelwise else torch.arange(adapter.numel(), device=device)
        taps = kernels * math.prod(self.site.kernel) + self._centre()  # what each number is added to
        return weight.flatten().index_add(0, taps, adapter).view_as(weight), bias

    def _centre(self) -> int:
        """Number of the centre tap among all kernel positions."""
        number = 0
        for size in self.site.kernel:
            number = number * size + (size - 1) // 2
        return number

    def _diagonal(self, device: torch.device | None = None) -> Tensor:
        """Numbers of the kernels at which a channel meets itself, group by group."""
        groups, inputs = self.site.groups, self.site.shape[1]
        outputs = self.site.out_channels // groups
        first = torch.arange(groups, device=device) * (outputs * inputs)
        return (first[:, None] + torch.arange(min(outputs, inputs), device=device) * (inputs + 1)).flatten()
