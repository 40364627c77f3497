"""Compare two classifiers on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from convpeft.errors import OptionError
from convpeft.evaluation.statistics import tail_of

# A difference counts as real when its interval leaves zero out and its exact test agrees at this level.
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Difference:
    """How much more accurate `a` is than `b` on the same images.

    Attributes:
        delta: Accuracy of `a` minus accuracy of `b`, in -1..1.
        low: Lower end of the paired bootstrap interval of `delta`.
        high: Upper end of it.
        p_value: Exact McNemar p-value.
        n: Number of images.
        only_a: Images that only `a` got right.
        only_b: Images that only `b` got right.
        confidence: Coverage of the interval, in 0..1.
    """

    delta: float
    low: float
    high: float
    p_value: float
    n: int
    only_a: int
    only_b: int
    confidence: float

    @property
    def within_noise(self) -> bool:
        """Whether chance alone explains the difference: the interval holds zero, or McNemar's p >= 0.05."""
        return self.low <= 0.0 <= self.high or self.p_value >= _SIGNIFICANCE


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Test whether two classifiers differ on the same images, by the exact binomial form of McNemar's test.

    Args:
        correct_a: Whether each image was classified right by `a`, (N,) booleans.
        correct_b: The same for `b`, in the same order.

    Returns:
        The two-sided p-value; 1.0 when they are right on the same images.

    Raises:
        OptionError: If the two are not equally long, or empty.

    Source:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    only_a, only_b, _ = _discordant("mcnemar", correct_a, correct_b)
    return _exact_p_value(only_a, only_b)


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """Compare the accuracies of two classifiers on the same images.

    Args:
        correct_a: Whether each image was classified right by `a`, (N,) booleans.
        correct_b: The same for `b`, in the same order.
        seed: Of the generator that draws the resamples.
        resamples: Bootstrap resamples of images, at least 1.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The difference a - b with its paired bootstrap interval and McNemar's p-value.

    Raises:
        OptionError: If the two are not equally long, or empty, or an option is out of range.
    """
    only_a, only_b, n = _discordant("paired_difference", correct_a, correct_b)
    if resamples < 1:
        raise OptionError(f"paired_difference: expected resamples >= 1, got {resamples}. The usual number is 10,000.")
    tail = tail_of("paired_difference", confidence)
    # Each image contributes +1, -1 or 0, so resampling images is drawing three multinomial counts.
    shares = np.array([only_a, only_b, n - only_a - only_b], dtype=np.float64) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [tail, 1 - tail])
    return Difference(
        delta=(only_a - only_b) / n,
        low=float(low),
        high=float(high),
        p_value=_exact_p_value(only_a, only_b),
        n=n,
        only_a=only_a,
        only_b=only_b,
        confidence=confidence,
    )


def describe_difference(difference: Difference, *, a: str, b: str) -> str:
    """Put a difference into one plain sentence that says when it is within noise.

    >>> even = Difference(0.002, -0.004, 0.008, 0.61, n=2000, only_a=31, only_b=27, confidence=0.95)
    >>> describe_difference(even, a="LoRA", b="head only")
    'LoRA and head only differ by 0.20 points (95 % interval -0.40 to 0.80, p = 0.61): within the noise of \
2,000 images.'
    """
    facts = (
        f"{100 * difference.confidence:.3g} % interval {100 * difference.low:.2f} to "
        f"{100 * difference.high:.2f}, {_p_value_text(difference.p_value)}"
    )
    if difference.only_a == difference.only_b == 0:
        return f"{a} and {b} are right on exactly the same of {difference.n:,} images."
    points = f"{100 * abs(difference.delta):.2f} points"
    if difference.within_noise:
        return f"{a} and {b} differ by {points} ({facts}): within the noise of {difference.n:,} images."
    word = "more" if difference.delta > 0 else "less"
    return f"{a} is {points} {word} accurate than {b} ({facts}, paired over {difference.n:,} images)."


def _discordant(who: str, correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    """Count the images only `a` got right, those only `b` got right, and all."""
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise OptionError(
            f"{who}: expected two equally long, non-empty lists of right and wrong, got shapes {a.shape} and "
            f"{b.shape}. Evaluate both on the same images."
        )
    return int(np.sum(a & ~b)), int(np.sum(b & ~a)), len(a)


def _exact_p_value(only_a: int, only_b: int) -> float:
    trials = only_a + only_b
    # Whole numbers keep the tail exact, however many images disagree.
    term = tail = 1
    for k in range(1, min(only_a, only_b) + 1):
        term = term * (trials - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**trials)


def _p_value_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
