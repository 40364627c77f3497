"""CoLoRA: a pointwise and a depthwise factor, rank one for each output filter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, Branch, Hook, Mergeable, Module, Progress
from convpeft.convolving import convolve
from convpeft.errors import OptionError
from convpeft.sites import Kind, Site

Order = Literal["pointwise-first", "depthwise-first"]
Bias = Literal["none", "output", "paper"]


class Colora(Additive, name="colora"):
    r"""Add to each kernel a channel vector times one spatial pattern, as a separable convolution beside it does.

    pointwise-first: delta[o, i, j] = pointwise[o, i] * depthwise[o, j],  bias' = bias + shift
    depthwise-first: delta[o, i, j] = pointwise[o, i] * depthwise[i, j]

    weight (out, in/groups, *kernel) frozen, j over all kernel positions
    pointwise (out, in/groups) Glorot-uniform | depthwise (out, positions), or (in, positions), zeros
    shift (out) zeros

    There is no rank and no scale. In a grouped convolution `depthwise` of the second order has a row for each input
    channel of each group.

    Args:
        order: `pointwise-first` as in the paper's second version, `depthwise-first` as in its first.
        bias: `output` trains an offset of the bias, which comes into being where there is none; `none` does not;
            `paper` has the released code's two biases, one after each factor. In pointwise-first order the inner one
            passes the zero-padded depthwise convolution and is no bias of the layer at the borders, so that
            form runs beside the layer and cannot be merged; in the other order it is `output`.
        merge_every: `never`, or `epoch`: after each epoch the delta joins a frozen one of the adapter's own,
            `pointwise` is drawn anew, `depthwise` is zeroed and the optimiser forgets both. The total may have any
            rank, and the adapter file is as large as the adapted weights.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Source:
        Rivera, Hoyos, CoLoRA: Efficient Fine-Tuning for Convolutional Models, 2025, arXiv 2505.18315, section 3.
        Differs: one bias by default; nothing is written into the base; the optimiser's state is cleared at a merge,
        where the released code keeps it; the branch is never left out in evaluation.
    """

    paper: ClassVar[str] = "Rivera, Hoyos 2025, arXiv 2505.18315"
    kinds: ClassVar[tuple[Kind, ...]] = ("conv",)
    refused: ClassVar[Mapping[Kind, str]] = {**Module.refused, "linear": "a linear layer has no spatial kernel"}
    default_sites: ClassVar[tuple[str, ...]] = ("spatial",)
    default_exclude: ClassVar[tuple[str, ...]] = ("head",)
    learning_rate: ClassVar[float] = 2e-3
    merged: Tensor | None
    seed: Tensor | None

    def __init__(
        self,
        site: Site,
        *,
        order: Order = "pointwise-first",
        bias: Bias = "output",
        merge_every: Literal["never", "epoch"] = "never",
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        self.order = order
        inputs, positions = site.shape[1] * site.groups, math.prod(site.kernel)
        self.pointwise = nn.Parameter(torch.empty(site.out_channels, site.shape[1]))
        rows = site.out_channels if order == "pointwise-first" else inputs
        self.depthwise = nn.Parameter(torch.empty(rows, positions))
        self.shift = None if bias == "none" else nn.Parameter(torch.empty(site.out_channels))
        merges = merge_every == "epoch"
        self.hooks: frozenset[Hook] = frozenset(("plan_training", "after_step") if merges else ())
        self.register_buffer("merged", torch.zeros(site.shape) if merges else None)
        self.register_buffer("seed", torch.zeros(1, dtype=torch.int64) if merges else None)

    @classmethod
    def form(cls, **options: Any) -> type[Module]:
        """With the paper's two biases in pointwise-first order it is no map of weights."""
        beside = options.get("bias") == "paper" and options.get("order") == "pointwise-first"
        return ColoraBeside if beside else cls

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Draw `pointwise`, zero the rest."""
        if self.seed is not None:
            self.seed.random_(0, 2**31, generator=generator)
        nn.init.xavier_uniform_(self.pointwise, generator=generator)
        nn.init.zeros_(self.depthwise)
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def delta(self) -> Tensor:
        """What is added by the factors alone, (out, in/groups, positions)."""
        depthwise = self.scaled(self.depthwise)
        if self.order == "pointwise-first":
            return self.pointwise.unsqueeze(2) * depthwise.unsqueeze(1)
        groups, (out, inside) = self.site.groups, self.pointwise.shape
        pointwise = self.pointwise.view(groups, out // groups, inside, 1)
        return (pointwise * depthwise.view(groups, 1, inside, -1)).flatten(0, 1)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + merged + delta, bias + shift)."""
        new = weight + self.delta().view_as(weight)
        if self.merged is not None:
            new = new + self.merged
        if self.shift is None:
            return new, bias
        shift = self.scaled(self.shift)
        return new, shift if bias is None else bias + shift

    @classmethod
    def after_step(
        cls, parts: Sequence[Self], progress: Progress | None, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Merge and begin anew at the end of each epoch."""
        for part in parts:
            if part.merged is not None and progress is not None and progress.ends_epoch:
                part.merge_and_reset(progress.step, optimizer)

    def merge_and_reset(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Add the delta to the frozen one, draw new factors, and let the optimiser forget the old ones."""
        assert self.merged is not None
        assert self.seed is not None
        generator = torch.Generator().manual_seed(int(self.seed.item()) + step)  # the same after a resumption
        with torch.no_grad():
            self.merged += self.delta().view_as(self.merged)
            fresh = nn.init.xavier_uniform_(torch.empty(self.pointwise.shape), generator=generator)
            self.pointwise.copy_(fresh)
            self.depthwise.zero_()
        for factor in (self.pointwise, self.depthwise):
            if optimizer is not None:
                optimizer.state.pop(factor, None)


class ColoraBeside(Branch):
    r"""CoLoRA with the released code's two biases: y + depthwise(pointwise(x) + inner) + shift."""

    method_name: ClassVar[str] = "colora"
    paper: ClassVar[str] = Colora.paper
    mergeable: ClassVar[Mergeable] = "never"
    kinds: ClassVar[tuple[Kind, ...]] = Colora.kinds
    refused: ClassVar[Mapping[Kind, str]] = Colora.refused
    default_sites: ClassVar[tuple[str, ...]] = Colora.default_sites
    learning_rate: ClassVar[float] = Colora.learning_rate

    def __init__(
        self, site: Site, *, order: Order, bias: Bias, merge_every: Literal["never", "epoch"], learned_scale: bool
    ) -> None:
        super().__init__(site)
        if merge_every == "epoch":
            raise OptionError(
                f"method 'colora': merge_every={merge_every!r} cannot merge the inner bias of bias={bias!r}. "
                "Use bias='output'."
            )
        self.pointwise = nn.Parameter(torch.empty(site.out_channels, site.shape[1]))
        self.depthwise = nn.Parameter(torch.empty(site.out_channels, math.prod(site.kernel)))
        self.inner = nn.Parameter(torch.empty(site.out_channels))
        self.shift = nn.Parameter(torch.empty(site.out_channels))
        self.learned_scale = nn.Parameter(torch.ones(1)) if learned_scale else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Draw `pointwise`, zero the rest."""
        nn.init.xavier_uniform_(self.pointwise, generator=generator)
        for zero in (self.depthwise, self.inner, self.shift):
            nn.init.zeros_(zero)

    def forward(self, given: Tensor, output: Tensor) -> Tensor:
        """Add the separable convolution of the input (batch, in, *space) to the output (batch, out, *space)."""
        site, ones = self.site, [1] * len(self.site.kernel)
        inside = pointwise_convolution(given, self.pointwise, site.groups) + self.inner.view(1, -1, *ones)
        filters = self.depthwise.view(-1, 1, *site.kernel)
        added = convolve(site, inside, filters, groups=site.out_channels) + self.shift.view(1, -1, *ones)
        return output + (added if self.learned_scale is None else self.learned_scale * added)


def pointwise_convolution(given: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A 1x1 convolution of (batch, in, *space) with weight (out, in/groups)."""
    out, inside = weight.shape
    grouped = given.flatten(2).unflatten(1, (groups, inside))  # (batch, groups, in/groups, positions)
    made = weight.view(groups, out // groups, inside) @ grouped
    return made.flatten(1, 2).unflatten(2, given.shape[2:])
