"""How much more accurate one side is than the other: over the draws of images, and over the test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convpeft.evaluation import SeedDifference, seed_difference

_NORMAL = 1.959964  # 97.5 % quantile


@dataclass(frozen=True)
class Contrast:
    """How much more accurate one side is than the other, on the same draws of images and the same test images.

    Attributes:
        seeds: Over the draws: what other training images would have given, with this test split.
        low: Lower end of the 95 % interval over the test images, whole patients where they are known, with these draws.
        high: Upper end of it.
    """

    seeds: SeedDifference
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals leave zero out on the same side, else 0: within noise."""
        if self.seeds.low is None or self.seeds.high is None:
            return 0
        return (self.seeds.low > 0 and self.low > 0) - (self.seeds.high < 0 and self.high < 0)


def contrast(gaps: NDArray[np.float64], groups: Sequence[int] | None = None) -> Contrast:
    """Both intervals of a difference.

    Args:
        gaps: How much more right one side is than the other, (seeds, test images).
        groups: A number for each test image, the same for those that belong together, or None.
    """
    over_seeds = gaps.mean(axis=1).tolist()
    mean, reach = float(gaps.mean()), _NORMAL * clustered_error(gaps.mean(axis=0), groups)
    return Contrast(seed_difference(over_seeds, [0.0] * len(over_seeds)), mean - reach, mean + reach)


def clustered_error(values: NDArray[np.float64], groups: Sequence[int] | None) -> float:
    """The standard error of a mean of images, of which those of a group are no independent ones.

    sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n, with each image its own group where there are none.

    Args:
        values: One number an image, (n,).
        groups: A number of its group for each image, or None.
    """
    numbers = np.arange(len(values)) if groups is None else np.asarray(groups)
    _, places = np.unique(numbers, return_inverse=True)
    sums = np.bincount(places, weights=values - values.mean())
    count = len(sums)
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)
