"""Say how much of the old task a model keeps after adaptation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convpeft.errors import OptionError


def retention(base_accuracy: float, adapted_accuracy: float) -> float:
    """Give the share of the old task's accuracy that is left: adapted / base, above 1 where it rose.

    Args:
        base_accuracy: Accuracy of the base on its own task, in (0, 1].
        adapted_accuracy: Accuracy on that task with the adapter on and the old head, in 0..1.

    Raises:
        OptionError: If an accuracy is out of range.

    >>> retention(0.8, 0.6)
    0.7499999999999999
    """
    if not (0 < base_accuracy <= 1 and 0 <= adapted_accuracy <= 1):
        raise OptionError(
            "retention: expected base_accuracy in (0, 1] and adapted_accuracy in 0..1, got "
            f"{base_accuracy} and {adapted_accuracy}. Pass fractions, not percent."
        )
    return adapted_accuracy / base_accuracy


def is_retained(base_logits: NDArray[np.float32], disabled_logits: NDArray[np.float32]) -> bool:
    """Say whether the base answers with the very same bits once the adapter is off (structural retention)."""
    return (
        base_logits.dtype == disabled_logits.dtype
        and base_logits.shape == disabled_logits.shape
        and base_logits.tobytes() == disabled_logits.tobytes()
    )


def agreement(predicted_a: NDArray[np.int64], predicted_b: NDArray[np.int64]) -> float:
    """Give the share of images that two classifiers put in the same class (needs no labels).

    Raises:
        OptionError: If the two are not equally long, or empty.
    """
    if predicted_a.shape != predicted_b.shape or predicted_a.size == 0:
        raise OptionError(
            f"agreement: expected two equally long, non-empty lists of classes, got shapes "
            f"{predicted_a.shape} and {predicted_b.shape}. Evaluate both on the same images."
        )
    return float(np.count_nonzero(predicted_a == predicted_b) / predicted_a.size)
