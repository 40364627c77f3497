"""Count which classes are taken for which, and find the mistakes worth looking at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convpeft.errors import OptionError
from convpeft.evaluation.predicting import Predictions


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are taken for each other.

    Attributes:
        first: Name of the class that comes first in the class list.
        second: Name of the other.
        first_as_second: Images of `first` that were called `second`.
        second_as_first: Images of `second` that were called `first`.
        share: Both together, as a share of all errors, in (0, 1].
    """

    first: str
    second: str
    first_as_second: int
    second_as_first: int
    share: float

    @property
    def count(self) -> int:
        """Mistakes in either direction."""
        return self.first_as_second + self.second_as_first


@dataclass(frozen=True)
class Mistake:
    """One wrong answer.

    Attributes:
        index: Position of the image in its split.
        label: Number of its true class.
        predicted: Number of the class it was given.
        confidence: Probability of that class, in (0, 1].
    """

    index: int
    label: int
    predicted: int
    confidence: float


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], *, num_classes: int) -> NDArray[np.int64]:
    """Count images by true class (row) and predicted class (column), (K, K) int64."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def find_confused_pairs(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ConfusedPair, ...]:
    """List every pair of classes confused at least once, the most confused first, equals in class order."""
    mutual = np.triu(matrix + matrix.T, k=1)
    errors = int(mutual.sum())
    pairs = [(int(a), int(b)) for a, b in np.argwhere(mutual)]
    pairs.sort(key=lambda pair: -int(mutual[pair]))
    return tuple(
        ConfusedPair(
            first=classes[a],
            second=classes[b],
            first_as_second=int(matrix[a, b]),
            second_as_first=int(matrix[b, a]),
            share=int(mutual[a, b]) / errors,
        )
        for a, b in pairs
    )


def errors_most_confident(predictions: Predictions, n: int) -> tuple[Mistake, ...]:
    """List at most n wrong answers, the surest first, equals by position.

    Raises:
        OptionError: If n is negative.
    """
    if n < 0:
        raise OptionError(f"errors_most_confident: expected n >= 0, got {n}. Pass how many mistakes to list.")
    probabilities = predictions.probabilities
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    order = np.lexsort((predictions.index[wrong], -confidence[wrong]))
    return tuple(
        Mistake(
            index=int(predictions.index[row]),
            label=int(predictions.labels[row]),
            predicted=int(predicted[row]),
            confidence=float(confidence[row]),
        )
        for row in wrong[order][:n]
    )
