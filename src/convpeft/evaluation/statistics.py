"""Say how sure a measured accuracy, or a difference between two, is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convpeft.errors import OptionError


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a proportion with Wilson's score interval, sound for small n and near 0 and 1.

    Args:
        successes: Number of right answers, 0 <= successes <= n.
        n: Number of answers, at least 1.
        confidence: Coverage, in (0, 1).

    Returns:
        The lower and the upper bound, in 0..1.

    Raises:
        OptionError: If the counts contradict each other or the confidence is out of range.

    Source:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise OptionError(
            f"wilson_interval: expected 0 <= successes <= n and n >= 1, got successes={successes}, n={n}. "
            "Pass the number of right answers and the number of answers."
        )
    z = _quantile("wilson_interval", confidence)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else max(0.0, (centre - spread) / (1 + z * z / n))
    high = 1.0 if successes == n else min(1.0, (centre + spread) / (1 + z * z / n))
    return low, high


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.mean(values))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = _mean,
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Bound a statistic with the percentile bootstrap.

    Args:
        values: The sample, (N,) with N >= 1.
        statistic: Maps a resample (N,) to a number. Default: the mean.
        seed: Of the generator that draws the resamples.
        resamples: How many are drawn, at least 1.
        confidence: Coverage, in (0, 1).

    Returns:
        The lower and the upper bound.

    Raises:
        OptionError: If there are no values, or resamples or confidence are out of range.

    Source:
        B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or resamples < 1:
        raise OptionError(
            f"bootstrap_interval: expected values of shape (N,) with N >= 1 and resamples >= 1, "
            f"got shape {sample.shape} and resamples={resamples}. Pass a flat, non-empty sequence of numbers."
        )
    tail = tail_of("bootstrap_interval", confidence)
    generator = np.random.default_rng(seed)
    draws = [statistic(sample[generator.integers(0, len(sample), len(sample))]) for _ in range(resamples)]
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Give the mean and the sample standard deviation (n - 1) of a few runs.

    Returns:
        The mean, and the deviation, or None for a single value, which has none.

    Raises:
        OptionError: If there are no values.

    >>> mean_and_deviation([1.0, 3.0])
    (2.0, 1.4142135623730951)
    >>> mean_and_deviation([0.5])
    (0.5, None)
    """
    if not values:
        raise OptionError("mean_and_deviation: expected at least one value, got none. Pass one number a run.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def minimum_detectable_effect(n: int, accuracy: float, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """Say how large an accuracy difference must be to be found with n test images.

    The smallest d with d = z_a sqrt(2 m (1 - m) / n) + z_b sqrt((p (1 - p) + q (1 - q)) / n), where p is the
    accuracy, q lies d nearer to one half (the side with more variance) and m is their mean. Two independent
    test sets are assumed, the cautious case: on the same images, smaller differences are found.

    Args:
        n: Test images, at least 1.
        accuracy: The accuracy expected of either classifier, in 0..1.
        power: Probability of finding a difference of that size, in (0, 1).
        confidence: One minus the two-sided test level, in (0, 1).

    Returns:
        The difference as a fraction in (0, 1]; 1.0 where n is too small to find any.

    Raises:
        OptionError: If an argument is out of range.

    Source:
        J. L. Fleiss, "Statistical methods for rates and proportions", 1981, chapter 3, solved for d.
    """
    if n < 1 or not 0 <= accuracy <= 1 or not 0 < power < 1:
        raise OptionError(
            "minimum_detectable_effect: expected n >= 1, accuracy in 0..1 and power in (0, 1), "
            f"got n={n}, accuracy={accuracy}, power={power}. Accuracy and power are fractions, not percent."
        )
    z_level = _quantile("minimum_detectable_effect", confidence)
    z_power = NormalDist().inv_cdf(power)
    sign = -1 if accuracy >= 0.5 else 1

    def shortfall(delta: float) -> float:
        other = accuracy + sign * delta
        middle = (accuracy + other) / 2
        level = z_level * math.sqrt(2 * middle * (1 - middle) / n)
        return level + z_power * math.sqrt((accuracy * (1 - accuracy) + other * (1 - other)) / n) - delta

    low, high = 0.0, max(accuracy, 1 - accuracy)
    if shortfall(high) > 0:
        return 1.0
    # Sixty halvings reach the last bit of a float.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shortfall(middle) > 0 else (low, middle)
    return high


def tail_of(who: str, confidence: float) -> float:
    """Give the probability left on each side of an interval, or refuse the confidence for `who`."""
    if not 0 < confidence < 1:
        raise OptionError(f"{who}: expected confidence in (0, 1), got {confidence}. The usual value is 0.95.")
    return (1 - confidence) / 2


def _quantile(who: str, confidence: float) -> float:
    return NormalDist().inv_cdf(1 - tail_of(who, confidence))
