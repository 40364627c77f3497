"""Compare how sure a model is with how often it is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence lies in (low, high].

    Attributes:
        low: Lower edge, excluded.
        high: Upper edge, included.
        count: Number of images.
        confidence: Their mean confidence, None when there are none.
        accuracy: The share of them classified right, None when there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def calibration_bins(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], *, bins: int = 15
) -> tuple[CalibrationBin, ...]:
    """Sort images into equal-width bins of confidence.

    Args:
        confidence: Probability of the predicted class, (N,), in (0, 1].
        correct: Whether it was the true one, (N,).
        bins: Number of bins; 15 as in the paper.

    Source:
        C. Guo et al., "On calibration of modern neural networks", 2017, arXiv:1706.04599, section 2.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    table: list[CalibrationBin] = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        table.append(
            CalibrationBin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                count=count,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=float(correct[inside].mean()) if count else None,
            )
        )
    return tuple(table)


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Give the mean gap between accuracy and confidence, weighted by the images in each bin, in 0..1."""
    total = sum(each.count for each in bins)
    gaps = [
        each.count * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    ]
    return math.fsum(gaps) / total
