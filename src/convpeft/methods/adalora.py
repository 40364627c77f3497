"""AdaLoRA: a budget of ranks that moves to the layers that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from convpeft.adapters import Hook, Progress, check_positive
from convpeft.errors import OptionError
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class AdaLora(LowRank, name="adalora"):
    r"""Add a matrix in the form of a singular value decomposition and prune values across all layers while training.

    delta = scale * reshape(up @ diag(values) @ down)

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    up (out, rank) orthonormal columns | values (rank) zeros | down (rank, n) orthonormal rows

    The importance of a triplet (one column, value and row) is s(value) + mean s(column) + mean s(row), where
    s = smoothed |x * gradient| times its smoothed uncertainty. Every few steps only the most important triplets of
    all layers together keep their value, as many as the budget allows: all of them during the warm-up, then falling
    with the cube of the time left to `target_rank` a layer on average, which holds for the last part of the training.

    Args:
        rank: Triplets of each layer at the start, >= 1. At most out * n / (out + n + 1) (see rank_policy).
        target_rank: Average triplets of a layer at the end, > 0 and at most rank.
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        warmup: Share of all steps before the first pruning, 0 <= warmup < 1.
        fixed: Share of all steps at the end in which the budget stays, 0 <= fixed < 1 - warmup.
        every: Steps between two allocations, >= 1.
        smoothing: Weight of the past in both averages, 0 <= smoothing < 1.
        orthogonality: Weight of the penalty |up' up - 1|^2 + |down down' - 1|^2 of each layer, >= 0.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If a number is out of range.

    Source:
        Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, 2023, arXiv 2303.10512,
        equations 3, 5 and 8 to 12. Differs: both sides start orthonormal, so that the penalty starts at zero; the
        schedule is given in shares of the training; both averages have one smoothing.
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2303.10512"
    learning_rate: ClassVar[float] = 4e-3
    hooks: frozenset[Hook] = frozenset(("plan_training", "penalty", "after_step"))
    kept: Tensor

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 12,
        target_rank: float = 8.0,
        alpha: float | None = None,
        warmup: float = 0.1,
        fixed: float = 0.4,
        every: int = 10,
        smoothing: float = 0.85,
        orthogonality: float = 0.1,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        step = 1.0 if alpha is None else alpha
        check_positive("adalora", rank=rank, target_rank=target_rank, every=every, alpha=step)
        _check_below(rank, target_rank, warmup, fixed, smoothing, orthogonality)
        width, self.scale = min(rank, self.largest_rank(site)), 1.0 if alpha is None else alpha / rank
        self.share = target_rank / rank
        self.warmup, self.fixed, self.every = warmup, fixed, every
        self.smoothing, self.orthogonality = smoothing, orthogonality
        self.up = nn.Parameter(torch.empty(site.out_channels, width))
        self.values = nn.Parameter(torch.empty(width))
        self.down = nn.Parameter(torch.empty(width, site.fan_in))
        for name, factor in self._factors():
            self.register_buffer(f"{name}_sensitivity", torch.zeros_like(factor.detach()), persistent=False)
            self.register_buffer(f"{name}_uncertainty", torch.zeros_like(factor.detach()), persistent=False)
        self.register_buffer("kept", torch.ones(width), persistent=False)

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest number of triplets that hold no more numbers than the weight."""
        return site.out_channels * site.fan_in // (site.out_channels + site.fan_in + 1)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the values, draw orthonormal sides."""
        nn.init.zeros_(self.values)
        nn.init.orthogonal_(self.up, generator=generator)
        nn.init.orthogonal_(self.down, generator=generator)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` with values and scale, and `down`."""
        return self.up * (self.scale * self.scaled(self.values)), self.down

    def penalty(self) -> Tensor:
        """How far both sides are from orthonormal, equation 4 of the paper times `orthogonality`."""
        one = torch.eye(len(self.values), dtype=self.up.dtype, device=self.up.device)
        sides = (self.up.T @ self.up - one).square().sum() + (self.down @ self.down.T - one).square().sum()
        return self.orthogonality * sides

    @classmethod
    def after_step(
        cls, parts: Sequence[Self], progress: Progress | None, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Measure the importance of every triplet, and share the budget out when it is time."""
        for part in parts:
            part.measure()
        if progress is None:
            return
        first = parts[0]
        end = (1 - first.fixed) * progress.total
        holds = progress.step - 1 >= end  # from then on the last allocation stays
        if not holds and (progress.step >= end or progress.step % first.every == 0):
            cls.allocate(parts, first.budget(progress, sum(len(part.values) for part in parts)))
        for part in parts:
            if holds:
                part.values.detach().mul_(part.kept)

    def measure(self) -> None:
        """Smooth |x * gradient| and its distance from the smoothed one, equations 9 and 10."""
        for name, factor in self._factors():
            if factor.grad is None:
                continue
            now = (factor * factor.grad).detach().abs()
            sensitivity, uncertainty = self._averages(name)
            sensitivity.mul_(self.smoothing).add_(now, alpha=1 - self.smoothing)
            uncertainty.mul_(self.smoothing).add_((now - sensitivity).abs(), alpha=1 - self.smoothing)

    def importance(self) -> Tensor:
        """Importance of each triplet, (rank), equations 8 and 11."""
        scores = {name: torch.mul(*self._averages(name)) for name, _ in self._factors()}
        return scores["values"] + scores["up"].mean(0) + scores["down"].mean(1)

    def budget(self, progress: Progress, whole: int) -> int:
        """Triplets that all layers may keep at this step, of `whole` at the start, equation 12."""
        begin, end = self.warmup * progress.total, (1 - self.fixed) * progress.total
        left = 1 - min(max((progress.step - begin) / max(end - begin, 1e-9), 0.0), 1.0)
        return round(whole * (self.share + (1 - self.share) * left**3))

    @classmethod
    def allocate(cls, parts: Sequence[Self], budget: int) -> None:
        """Zero the values of all but the `budget` most important triplets of all layers."""
        scores = torch.cat([part.importance().to("cpu") for part in parts])
        order = torch.argsort(scores, descending=True, stable=True)
        kept = torch.zeros(len(scores))
        kept[order[:budget]] = 1
        for part, own in zip(parts, kept.split([len(part.values) for part in parts]), strict=True):
            part.kept.copy_(own)
            part.values.detach().mul_(part.kept)

    def _factors(self) -> list[tuple[str, nn.Parameter]]:
        return [("up", self.up), ("values", self.values), ("down", self.down)]

    def _averages(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{name}_sensitivity"), self.get_buffer(f"{name}_uncertainty")


def _check_below(
    rank: int, target_rank: float, warmup: float, fixed: float, smoothing: float, orthogonality: float
) -> None:
    for name, value, limits, right in (
        ("target_rank", target_rank, f"at most rank={rank}", target_rank <= rank),
        ("warmup", warmup, "at least 0 and below 1", 0 <= warmup < 1),
        ("fixed", fixed, f"at least 0 and below 1 - warmup = {1 - warmup:g}", 0 <= fixed < 1 - warmup),
        ("smoothing", smoothing, "at least 0 and below 1", 0 <= smoothing < 1),
        ("orthogonality", orthogonality, "at least 0", 0 <= orthogonality < float("inf")),
    ):
        if not right:
            raise OptionError(f"method 'adalora': {name}={value!r} is out of range, it must be {limits}.")
