"""Measure how well scores rank the images of a class above the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def area_under_curve(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Give the area under the ROC curve, ties counted as one half.

    Computed from rank sums (the Mann-Whitney form), whose terms are whole or half numbers: nothing is lost to
    rounding until the last division.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,).

    Returns:
        The area in 0..1, or None when one of the two groups is empty.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (2 * last - counts + 1) / 2
    wins = float(ranks[place][positive].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def top_k_accuracy(probabilities: NDArray[np.float64], labels: NDArray[np.int64], k: int) -> float:
    """Give the share of images whose label is among the k most probable classes.

    Of equally probable classes the first come first, as for the predicted class, so it is never below
    accuracy. (scikit-learn takes the last of equals here and the first of equals there.)

    Args:
        probabilities: (N, K).
        labels: (N,), in 0..K-1.
        k: 1 <= k <= K.
    """
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    found = np.equal(likeliest, labels[:, None]).any(axis=1)
    return float(found.mean())
