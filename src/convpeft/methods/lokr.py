"""LoKr: the Kronecker product of a small matrix and a small kernel."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, check_positive
from convpeft.errors import OptionError
from convpeft.sites import Site


class Lokr(Additive, name="lokr"):
    r"""Add the Kronecker product of a small matrix and a small kernel: full rank from few numbers.

    delta[(a, b), (c, d), j] = scale * first[a, c] * second[b, d, j],  j over all kernel positions

    weight (out, in/groups, *kernel) frozen, with out = rows_first * rows_second and in/groups = columns_first *
    columns_second; each is split into two divisors, the smaller first
    first (rows_first, columns_first) Kaiming-uniform, one where it is a single number; or up_first @ down_first
    second (rows_second, columns_second * prod(kernel)) zeros; or up_second @ down_second, of which down_second is zeros
    up_first, down_first, up_second of width rank, Kaiming-uniform

    Args:
        rank: Width of the low-rank factors, >= 1. `second` is low-rank where rank is below half of the larger of
            rows_second and columns_second, else whole. Where `first` is a single number, since neither out nor
            in/groups splits, `second` is low-rank at any rank and the size of the layer limits it (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for; 1 where both factors are whole.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        factor: A divisor of out and of in/groups to split by, >= 1; where it divides no such number, the smaller part
            is the largest divisor up to it. Default: -1, the two divisors nearest to each other.
        decompose_both: Make `first` low-rank too, where rank is below half of its larger side.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank, alpha or factor is out of range.

    Source:
        Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, 2024,
        arXiv 2309.14859, LoKr; splits, thresholds, scale and start are those of the released LokrModule of LyCORIS,
        without its Tucker form. Differs: where that would be larger than the layer, a factor is whole if it is smaller
        so; a single number starts at one.
    """

    paper: ClassVar[str] = "Yeh et al. 2024, arXiv 2309.14859"
    learning_rate: ClassVar[float] = 2e-3

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 8,
        alpha: float | None = None,
        factor: int = -1,
        decompose_both: bool = False,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("lokr", rank=rank, alpha=1.0 if alpha is None else alpha)
        if factor != -1 and factor < 1:
            raise OptionError(
                f"method 'lokr': factor={factor!r} is out of range, it must be -1 (nearest to a square) or at least 1."
            )
        largest = self.largest_rank(site, factor=factor)
        width = rank if largest is None else min(rank, largest)
        first, second = _shapes(site, factor)
        low_first, low_second = _low_rank(site, first, second, width, decompose_both)
        self.scale = alpha / rank if alpha is not None and (low_first or low_second) else 1.0
        self.first, self.up_first, self.down_first = _make_factor(first, width if low_first else None)
        self.second, self.up_second, self.down_second = _make_factor(second, width if low_second else None)

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int | None:
        """None where every rank fits; else the largest at which the factors hold no more numbers than the weight."""
        first, (rows, columns) = _shapes(site, options.get("factor", -1))
        return None if math.prod(first) > 1 else (rows * columns - 1) // (rows + columns)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero the last tensor of `second`, draw the others."""
        for factor in (self.first, self.up_first, self.down_first, self.up_second):
            if factor is not None and factor.numel() > 1:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
            elif factor is not None:
                nn.init.ones_(factor)
        for factor in (self.second, self.down_second):
            if factor is not None:
                nn.init.zeros_(factor)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + delta, bias)."""
        first = self.scaled(_product(self.first, self.up_first, self.down_first))
        second = _product(self.second, self.up_second, self.down_second)
        outer = first.reshape(-1, 1) @ second.reshape(1, -1)
        delta = outer.view(*first.shape, *second.shape).transpose(1, 2)  # (rows, rows, columns, columns), first, second
        return torch.add(weight.reshape(delta.shape), delta, alpha=self.scale).reshape(weight.shape), bias


def _split(size: int, factor: int) -> tuple[int, int]:
    """Two divisors whose product is the size, the smaller one first."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    root = math.isqrt(size)
    limit = root if factor < 0 else min(factor, root)
    smaller = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return smaller, size // smaller


def _shapes(site: Site, factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of `first` and `second` as matrices."""
    rows, columns = _split(site.out_channels, factor), _split(site.shape[1], factor)
    return (rows[0], columns[0]), (rows[1], columns[1] * math.prod(site.kernel))


def _low_rank(
    site: Site, first: tuple[int, int], second: tuple[int, int], width: int, decompose_both: bool
) -> tuple[bool, bool]:
    """Whether `first` and `second` are low-rank: LyCORIS's thresholds, unless that were larger than the layer."""
    shapes, single = (first, second), math.prod(first) == 1
    sides = (max(first), max(second[0], second[1] // math.prod(site.kernel)))
    low = [decompose_both and 2 * width < sides[0], 2 * width < sides[1] or single]
    numbers = sum(width * sum(shape) if is_low else math.prod(shape) for shape, is_low in zip(shapes, low, strict=True))
    if numbers > math.prod(site.shape) and not single:
        low = [is_low and width * sum(shape) < math.prod(shape) for shape, is_low in zip(shapes, low, strict=True)]
    return low[0], low[1]


def _make_factor(
    shape: tuple[int, int], width: int | None
) -> tuple[nn.Parameter | None, nn.Parameter | None, nn.Parameter | None]:
    """A factor whole, or its two sides."""
    rows, columns = shape
    if width is None:
        return nn.Parameter(torch.empty(rows, columns)), None, None
    return None, nn.Parameter(torch.empty(rows, width)), nn.Parameter(torch.empty(width, columns))


def _product(whole: Tensor | None, up: Tensor | None, down: Tensor | None) -> Tensor:
    if whole is not None:
        return whole
    assert up is not None and down is not None
    return up @ down
