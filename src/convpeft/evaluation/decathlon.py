"""The Visual Decathlon score: what a method gains over fine-tuning whole networks, summed over domains."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convpeft.errors import OptionError

_FULL = 1000.0  # points of a domain without an error


def decathlon_score(accuracies: Sequence[float], *, baseline: Sequence[float]) -> float:
    """Score a method over any set of domains.

    S = sum_d 1000 * (Emax_d)^-2 * max(0, Emax_d - E_d)^2 with Emax_d = 2 * E_d(baseline): a domain gives 250 points
    for the error of the baseline, 1000 for none, 0 for twice the baseline's error or more.

    Args:
        accuracies: Test accuracy in percent, one a domain, each in 0..100.
        baseline: The same of the whole network fine-tuned on each domain, each in 0..100 without 100.

    Raises:
        OptionError: If the two differ in length, are empty, or hold what is no percentage; or if the baseline makes
            no error on a domain, where the score is not defined.

    Source:
        S.-A. Rebuffi, H. Bilen, A. Vedaldi, "Learning multiple visual domains with residual adapters", 2017,
        arXiv:1705.08045, section 4.

    >>> round(decathlon_score([90.0, 100.0], baseline=[90.0, 80.0]))
    1250
    """
    if len(accuracies) != len(baseline) or not accuracies:
        raise OptionError(
            f"decathlon_score: expected one accuracy and one baseline a domain, got {len(accuracies)} and "
            f"{len(baseline)}. Pass two lists of equal length."
        )
    if not all(0 <= value <= 100 for value in (*accuracies, *baseline)):
        raise OptionError("decathlon_score: expected accuracies in percent, 0 to 100. Multiply fractions by 100.")
    if any(value == 100 for value in baseline):
        raise OptionError(
            "decathlon_score: the baseline makes no error on a domain, so there is nothing to measure by. Leave it out."
        )
    points: list[float] = []
    for accuracy, own in zip(accuracies, baseline, strict=True):
        most = 2 * (100 - own)
        points.append(_FULL * (max(0.0, most - (100 - accuracy)) / most) ** 2)
    return math.fsum(points)
