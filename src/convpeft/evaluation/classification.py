"""Measure a classifier: accuracy, F1, AUC, calibration and confusions, equal to scikit-learn's numbers.

Plain numpy in float64: torchmetrics 1.9 divides in float32 and is off by 1e-9 to 4e-8, the promise is 1e-12.

A class without a test image has no score: its entries are None and the macro means leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convpeft.errors import DataError
from convpeft.evaluation.calibration import CalibrationBin, calibration_bins, expected_calibration_error
from convpeft.evaluation.confusion import ConfusedPair, confusion_matrix, find_confused_pairs
from convpeft.evaluation.ranking import area_under_curve, top_k_accuracy
from convpeft.evaluation.statistics import wilson_interval

_TOP = 5
# Probabilities may come from float32 arithmetic; further from one than this they are no probabilities.
_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ClassScores:
    """One class against the rest; every score but `support` is None for a class without a test image.

    Attributes:
        name: Name of the class.
        support: Test images of the class.
        precision: Share of the images called so that are so; 0 when none is called so.
        sensitivity: Share of its images that are found (recall).
        specificity: Share of the other images not called so; None when there are no others.
        f1: Harmonic mean of precision and sensitivity.
        auc: Area under the ROC curve, one against the rest; None when there are no others.
    """

    name: str
    support: int
    precision: float | None
    sensitivity: float | None
    specificity: float | None
    f1: float | None
    auc: float | None


@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """Everything that is measured on a test set; macro means run over the classes that have test images.

    Attributes:
        n: Test images.
        classes: Class names, K of them.
        accuracy: Share classified right.
        accuracy_interval: Its Wilson 95 % interval.
        balanced_accuracy: Mean sensitivity.
        macro_precision: Mean precision.
        macro_specificity: Mean specificity, None with a single class.
        macro_f1: Mean F1.
        macro_auc: Mean AUC; for two classes the AUC of the second; None with a single class.
        top5_accuracy: Share whose label is among the five most probable classes, None for K <= 5.
        negative_log_likelihood: Mean of -log p(label) in nats, p kept away from 0 by the float64 epsilon.
        expected_calibration_error: Over 15 equal-width bins of confidence.
        calibration: The table of those bins.
        per_class: One entry a class.
        confusion: Images by true (row) and predicted (column) class, (K, K) int64.
        confused_pairs: Pairs of classes, the most confused first.
    """

    n: int
    classes: tuple[str, ...]
    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    macro_precision: float
    macro_specificity: float | None
    macro_f1: float
    macro_auc: float | None
    top5_accuracy: float | None
    negative_log_likelihood: float
    expected_calibration_error: float
    calibration: tuple[CalibrationBin, ...]
    per_class: tuple[ClassScores, ...]
    confusion: NDArray[np.int64]
    confused_pairs: tuple[ConfusedPair, ...]

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """The names of the classes without a test image."""
        return tuple(scores.name for scores in self.per_class if scores.support == 0)

    @property
    def errors(self) -> int:
        """Number of images classified wrong."""
        return self.n - int(np.trace(self.confusion))

    def to_dict(self) -> dict[str, Any]:
        """Give everything as dicts, lists, strings and numbers; what is undefined is None, never NaN."""
        record = asdict(self)
        record["confusion"] = self.confusion.tolist()
        record["accuracy_interval"] = list(self.accuracy_interval)
        for name in ("classes", "calibration", "per_class", "confused_pairs"):
            record[name] = list(record[name])
        return record


def classification_metrics(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> ClassificationMetrics:
    """Measure predicted probabilities against the true classes.

    Args:
        probabilities: (N, K), finite, rows that sum to one.
        labels: (N,), integers in 0..K-1.
        classes: K names, in the order of the columns.

    Returns:
        The metrics; the predicted class is the first of the most probable.

    Raises:
        DataError: If there are no images, the shapes disagree, a label is out of range, or a row is no
            probability distribution.
    """
    names = tuple(classes)
    p, y = _checked(probabilities, labels, len(names))
    predicted = p.argmax(axis=1).astype(np.int64)
    confusion = confusion_matrix(y, predicted, num_classes=len(names))
    hits = int(np.trace(confusion))
    per_class = _score_classes(p, y, confusion, names)
    bins = calibration_bins(p.max(axis=1), predicted == y)
    own = np.take_along_axis(p, y[:, None], axis=1)
    return ClassificationMetrics(
        n=len(y),
        classes=names,
        accuracy=hits / len(y),
        accuracy_interval=wilson_interval(hits, len(y)),
        balanced_accuracy=_mean([scores.sensitivity for scores in per_class]),
        macro_precision=_mean([scores.precision for scores in per_class]),
        macro_specificity=_mean_or_none([scores.specificity for scores in per_class]),
        macro_f1=_mean([scores.f1 for scores in per_class]),
        macro_auc=_mean_or_none([scores.auc for scores in per_class]),
        top5_accuracy=top_k_accuracy(p, y, _TOP) if len(names) > _TOP else None,
        negative_log_likelihood=float(-np.log(np.clip(own, np.finfo(np.float64).eps, 1.0)).mean()),
        expected_calibration_error=expected_calibration_error(bins),
        calibration=bins,
        per_class=per_class,
        confusion=confusion,
        confused_pairs=find_confused_pairs(confusion, names),
    )


def _checked(
    probabilities: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, raw = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    where = "classification_metrics"
    if p.ndim != 2 or p.shape[1] != num_classes or raw.shape != (len(p),) or p.size == 0:
        raise DataError(
            f"{where}: expected probabilities (N, {num_classes}) and labels (N,) with N >= 1, "
            f"got {p.shape} and {raw.shape}. Pass one row an image and one column a class name."
        )
    if not np.isfinite(p).all() or (p < 0).any() or np.abs(p.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
        raise DataError(
            f"{where}: expected rows of probabilities (0..1, sum 1), got others. "
            "Pass Predictions.probabilities, not logits."
        )
    if not np.issubdtype(raw.dtype, np.integer) or raw.min() < 0 or raw.max() >= num_classes:
        raise DataError(
            f"{where}: expected whole-number labels in 0..{num_classes - 1}, got {raw.dtype} in "
            f"{raw.min()}..{raw.max()}. Number the classes in the order of their names."
        )
    return p, raw.astype(np.int64)


def _score_classes(
    p: NDArray[np.float64], y: NDArray[np.int64], confusion: NDArray[np.int64], names: tuple[str, ...]
) -> tuple[ClassScores, ...]:
    table: list[ClassScores] = []
    binary = len(names) == 2
    for number, name in enumerate(names):
        hits = int(confusion[number, number])
        support, called = int(confusion[number].sum()), int(confusion[:, number].sum())
        if support == 0:
            table.append(ClassScores(name, 0, None, None, None, None, None))
            continue
        others = len(y) - support
        # Of two classes, both are ranked by the second's probability: one curve, one area.
        auc = area_under_curve(p[:, 1], y == 1) if binary else area_under_curve(p[:, number], y == number)
        table.append(
            ClassScores(
                name=name,
                support=support,
                precision=hits / called if called else 0.0,
                sensitivity=hits / support,
                specificity=(others - (called - hits)) / others if others else None,
                f1=2 * hits / (support + called),
                auc=auc,
            )
        )
    return tuple(table)


def _mean(scores: Sequence[float | None]) -> float:
    """Average over the classes that have test images; there is always one."""
    return float(np.mean([score for score in scores if score is not None]))


def _mean_or_none(scores: Sequence[float | None]) -> float | None:
    return None if all(score is None for score in scores) else _mean(scores)
