"""Say what difference a comparison could have found, over pairs of answers or over seeds; and where seeds put it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from convpeft.errors import OptionError
from convpeft.evaluation.statistics import mean_and_deviation, tail_of

_NODES = 300  # of the quadrature
_HALVINGS = 60  # reach the last bit of a float
_MOST = 1e4  # largest quantile that is looked for


@dataclass(frozen=True)
class SeedDifference:
    """How much more accurate `a` is than `b`, seed by seed.

    Attributes:
        mean: Mean over the seeds, in -1..1.
        deviation: Sample standard deviation over the seeds; None for a single one.
        low: Lower end of Student's 95 % interval; None for a single seed.
        high: Upper end of it.
        detectable: Difference that would be found with 80 % power at 5 %; None for a single seed.
        count: Number of seeds.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    detectable: float | None
    count: int

    @property
    def within_noise(self) -> bool:
        """Whether these seeds cannot tell the two apart: the interval holds zero, or there is none."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


def seed_difference(a: Sequence[float], b: Sequence[float]) -> SeedDifference:
    """Compare two methods by their accuracies with the same seeds.

    Args:
        a: One accuracy a seed, fractions.
        b: The same of the other, in the same order of seeds.

    Raises:
        OptionError: If the two differ in length, or are empty.
    """
    if len(a) != len(b) or not a:
        raise OptionError(
            f"seed_difference: expected one accuracy a seed of either method, got {len(a)} and {len(b)}. "
            "Compare the seeds that both have."
        )
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    mean, deviation = mean_and_deviation(gaps)
    if deviation is None:
        return SeedDifference(mean, None, None, None, None, 1)
    low, high = mean_interval(gaps)
    return SeedDifference(mean, deviation, low, high, detectable_over_seeds(len(gaps), deviation=deviation), len(gaps))


def describe_seed_difference(difference: SeedDifference, *, a: str, b: str) -> str:
    """Put a difference over seeds into one plain sentence that says when it is within noise.

    >>> found = SeedDifference(0.004, 0.003, -0.0035, 0.0115, 0.0095, 3)
    >>> describe_seed_difference(found, a="LoRA", b="the probe")
    'LoRA and the probe differ by 0.40 points (95 % interval -0.35 to 1.15): within the noise of 3 seeds, which would \
have found 0.95 points 8 times in 10.'
    """
    points = f"{100 * abs(difference.mean):.2f} points"
    if difference.low is None or difference.high is None or difference.detectable is None:
        return f"{a} and {b} differ by {points} with one seed, which says nothing of other seeds."
    facts = f"95 % interval {100 * difference.low:.2f} to {100 * difference.high:.2f}"
    found = f"{100 * difference.detectable:.2f} points 8 times in 10"
    if difference.within_noise:
        return (
            f"{a} and {b} differ by {points} ({facts}): within the noise of {difference.count} seeds, "
            f"which would have found {found}."
        )
    word = "more" if difference.mean > 0 else "less"
    return f"{a} is {points} {word} accurate than {b} ({facts}, paired over {difference.count} seeds)."


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Bound the mean of a few runs with Student's interval.

    Raises:
        OptionError: If there are fewer than two values, or the confidence is out of range.
    """
    mean, deviation = mean_and_deviation(values)
    tail = tail_of("mean_interval", confidence)
    if deviation is None:
        raise OptionError("mean_interval: expected two values or more, got one. One run has no interval over runs.")
    reach = _student_quantile(1 - tail, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean - reach, mean + reach


def detectable_over_pairs(n: int, *, discordance: float, power: float = 0.8, confidence: float = 0.95) -> float:
    """Say how large an accuracy difference must be to be found on the same n images (McNemar's test).

    The d with sqrt(n) d = z_a sqrt(q) + z_b sqrt(q - d^2), where q is the discordance.

    Args:
        n: Test images, at least 1.
        discordance: Share of the images that one of the two gets right and the other wrong, in 0..1.
        power: Probability of finding a difference of that size, in (0, 1).
        confidence: One minus the two-sided test level, in (0, 1).

    Returns:
        The difference as a fraction; 1.0 where it would exceed the discordance, so that none can be found.

    Raises:
        OptionError: If an argument is out of range.

    Source:
        R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics
        43, 1987, solved for the difference.
    """
    if n < 1 or not 0 <= discordance <= 1 or not 0 < power < 1:
        raise OptionError(
            "detectable_over_pairs: expected n >= 1, discordance in 0..1 and power in (0, 1), "
            f"got n={n}, discordance={discordance}, power={power}. They are fractions, not percent."
        )
    level = NormalDist().inv_cdf(1 - tail_of("detectable_over_pairs", confidence))
    extra = NormalDist().inv_cdf(power)
    inside = n + extra**2 - level**2
    if inside < 0:
        return 1.0
    found = math.sqrt(discordance) * (math.sqrt(n) * level + extra * math.sqrt(inside)) / (n + extra**2)
    return found if found <= discordance else 1.0


def detectable_over_seeds(n: int, *, deviation: float, power: float = 0.8, confidence: float = 0.95) -> float:
    """Say how large a mean difference must be to be found with n seeds (the paired t-test, exactly).

    Args:
        n: Seeds, at least 2.
        deviation: Standard deviation of the differences from seed to seed, >= 0.
        power: Probability of finding a difference of that size, in (0, 1).
        confidence: One minus the two-sided test level, in (0, 1).

    Returns:
        The difference, in the unit of the deviation.

    Raises:
        OptionError: If an argument is out of range.
    """
    if n < 2 or not deviation >= 0 or not 0 < power < 1:
        raise OptionError(
            "detectable_over_seeds: expected n >= 2, deviation >= 0 and power in (0, 1), "
            f"got n={n}, deviation={deviation}, power={power}. One seed has no deviation."
        )
    limit = _student_quantile(1 - tail_of("detectable_over_seeds", confidence), n - 1)
    low, high = 0.0, 2.0 * limit + 20.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _exceeds(limit, n - 1, middle) + _exceeds(limit, n - 1, -middle)
        low, high = (middle, high) if found < power else (low, middle)
    return high * deviation / math.sqrt(n)


def _student_quantile(p: float, degrees: int) -> float:
    """The number that Student's t stays below with probability p > 0.5."""
    low, high = 0.0, _MOST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _exceeds(middle, degrees, 0.0) > 1 - p else (low, middle)
    return high


def _exceeds(limit: float, degrees: int, shift: float) -> float:
    """P(T > limit) of a non-central t: the normal tail at limit * s - shift, averaged over the deviation s."""
    nodes, weights = _deviations(degrees)
    tails = np.array([0.5 * math.erfc((limit * s - shift) / math.sqrt(2)) for s in nodes.tolist()])
    return float(tails @ weights)


@cache
def _deviations(degrees: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of the density of sqrt(chi^2 / degrees), for smooth functions of it."""
    most = 1 + 10 / math.sqrt(degrees)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    s = most * (nodes + 1) / 2
    log_constant = math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
    density = np.exp(log_constant + (degrees - 1) * np.log(s) - degrees * s**2 / 2)
    return s, weights * density * most / 2
