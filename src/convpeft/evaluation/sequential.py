"""Tasks learned one after the other: how good all are at the end, what was lost, what helped those to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from convpeft.errors import OptionError


@dataclass(frozen=True)
class SequenceScores:
    """What a matrix of accuracies comes to.

    Attributes:
        accuracy: ACC, the mean accuracy over all tasks after the last one.
        backward: BWT, the mean change of a task's accuracy from when it was learned until the end; below 0 is
            forgetting. None for a single task.
        forward: FWT, the mean gain on a task before it is learned over an untrained network. None for a single task, or
            where the untrained accuracies are not given.
        forgetting: What each task but the last has lost since it was learned; above 0 is a loss.
    """

    accuracy: float
    backward: float | None
    forward: float | None
    forgetting: tuple[float, ...]


def sequence_scores(matrix: ArrayLike, untrained: Sequence[float] | None = None) -> SequenceScores:
    """Sum up a sequence of T tasks.

    ACC = mean_k R[T, k],  BWT = mean_{k < T} R[T, k] - R[k, k],  FWT = mean_{k > 1} R[k - 1, k] - b[k]

    Args:
        matrix: R (T, T); R[i, j] is the accuracy on task j after training on task i, fractions. Entries that no score
            needs may be NaN.
        untrained: b (T,), the accuracy on each task of a network that was not trained on any. Default: no FWT.

    Raises:
        OptionError: If the matrix is not square, the two do not go together, or a number that is needed is no
            fraction.

    Source:
        Lopez-Paz, Ranzato, Gradient Episodic Memory, 2017, arXiv 1706.08840, equations 2 to 4; forgetting as
        Avalanche has it.

    >>> sequence_scores([[0.75, 0.25], [0.5, 1.0]], untrained=[0.125, 0.125])
    SequenceScores(accuracy=0.75, backward=-0.25, forward=0.125, forgetting=(0.25,))
    """
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not found.size:
        raise OptionError(
            f"sequence_scores: expected a matrix (tasks, tasks), got shape {found.shape}. "
            "Measure every task after each training."
        )
    count = len(found)
    start = None if untrained is None else np.asarray(untrained, dtype=np.float64)
    if start is not None and start.shape != (count,):
        raise OptionError(
            f"sequence_scores: expected one untrained accuracy for each of {count} tasks, got shape {start.shape}."
        )
    needed = [found[-1], np.diagonal(found)]
    if start is not None:
        needed += [np.diagonal(found, 1), start[1:]]
    for values in needed:
        if not np.all((values >= 0) & (values <= 1)):
            raise OptionError("sequence_scores: expected accuracies in 0..1. Pass fractions, not percent, and no NaN.")
    change = found[-1, :-1] - np.diagonal(found)[:-1]
    return SequenceScores(
        accuracy=float(found[-1].mean()),
        backward=float(change.mean()) if count > 1 else None,
        forward=float((np.diagonal(found, 1) - start[1:]).mean()) if start is not None and count > 1 else None,
        forgetting=tuple((-change).tolist()),
    )
