"""Whether one arm varies less than another: the ratio of their standard deviations, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL, _POWER = 0.975, 0.8


@dataclass(frozen=True)
class Ratio:
    """The standard deviation of one arm over that of another, on the same draws.

    Attributes:
        value: The ratio; below one, the first varies less.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        detectable: The ratio above one (or one over it, below) that would be found 8 times in 10, about.
        count: Draws.
    """

    value: float
    low: float
    high: float
    detectable: float
    count: int

    @property
    def sign(self) -> int:
        """1 where the first varies less, -1 where it varies more, 0 where these draws cannot tell."""
        return (self.high < 1) - (self.low > 1)


def deviation_ratio(cells: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio | None:
    """Compare two arms by the deviation of their accuracies, draw by draw.

    With variances in the ratio w, correlation r and f degrees of freedom, the ratio of the true variances lies
    between w (K - sqrt(K^2 - 1)) and w (K + sqrt(K^2 - 1)), K = 1 + 2 (1 - r^2) t^2 / f.

    Args:
        cells: For each transfer and amount of images, the accuracies of either arm, one a draw, in the same order;
            each cell has a mean of its own.

    Returns:
        The ratio of the deviations; None where there are fewer than three draws or an arm does not vary.

    Source:
        Pitman, 1939, and Morgan, 1939: a test for the difference between the two variances of a bivariate normal
        population; pooled over cells by sums of squares, each cell scaled so that both arms together count alike.
    """
    centred = [np.stack([_centred(values) for values in pair]) for pair in cells]
    # A cell that varies more in both arms is no more of a witness.
    first, second = np.concatenate([pair / (np.linalg.norm(pair) or 1.0) for pair in centred], axis=1)
    degrees = len(first) - len(cells) - 1
    squares = float(first @ first), float(second @ second)
    if degrees < 1 or not min(squares) > 0:
        return None
    ratio = squares[0] / squares[1]
    correlation = float(first @ second) / math.sqrt(squares[0] * squares[1])
    limit = float(stats.t.ppf(_LEVEL, degrees))
    reach = math.acosh(1 + 2 * max(0.0, 1 - correlation**2) * limit**2 / degrees) / 2
    value = math.sqrt(ratio)
    found = math.exp(reach * (1 + float(stats.t.ppf(_POWER, degrees)) / limit))
    return Ratio(value, value * math.exp(-reach), value * math.exp(reach), found, len(first))


def _centred(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    return found - found.mean()
