"""Turn measurements into sections of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from convpeft.evaluation.classification import ClassificationMetrics
from convpeft.evaluation.confusion import Mistake
from convpeft.evaluation.retention import retention
from convpeft.reporting.canvas import figure_bytes
from convpeft.reporting.content import Figure, KeyFigure, KeyFigures, Notes, Section, Table
from convpeft.reporting.pictures import plot_confusion, plot_gallery
from convpeft.reporting.plots import plot_curves, plot_reliability
from convpeft.reporting.wording import (
    format_bytes,
    format_count,
    format_duration,
    format_interval,
    format_number,
    format_percent,
    format_share,
    printable,
)

_MOST_PAIRS = 10
# What fits on one line under an image of the gallery.
_MOST_LETTERS = 15
# A longer table of classes is shown only when opened.
_MOST_CLASSES = 40


def headline(
    metrics: ClassificationMetrics,
    *,
    trainable: int,
    total: int,
    adapter_bytes: int | None = None,
    seconds: float | None = None,
    peak_bytes: int | None = None,
) -> KeyFigures:
    """Give the numbers a reader wants first.

    Args:
        metrics: Of the test set.
        trainable: Parameters trained.
        total: Parameters of the whole model.
        adapter_bytes: Size of the adapter file. Default: left out, as are the next two.
        seconds: Training time.
        peak_bytes: Peak memory while training.
    """
    low, high = metrics.accuracy_interval
    items = [
        KeyFigure(
            "Test accuracy",
            format_percent(metrics.accuracy),
            f"95 % interval {100 * low:.1f} to {100 * high:.1f}, {format_count(metrics.n)} images",
        ),
        KeyFigure(
            "Trainable parameters",
            format_count(trainable),
            f"{format_share(trainable, total)} of {format_count(total)}",
        ),
    ]
    if adapter_bytes is not None:
        items.append(KeyFigure("Adapter size", format_bytes(adapter_bytes), "the file to share"))
    if seconds is not None:
        items.append(KeyFigure("Training time", format_duration(seconds)))
    if peak_bytes is not None:
        items.append(KeyFigure("Peak memory", format_bytes(peak_bytes), "while training"))
    return KeyFigures(tuple(items))


def curves_section(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Show how training went; the rows are those of `plot_curves`."""
    return Figure(
        title="Learning curves",
        caption="The circle marks the best epoch by validation accuracy.",
        image=figure_bytes(plot_curves(history)),
        alternative=f"Loss, validation accuracy and learning rate over {len(history)} epochs",
    )


def classification_sections(metrics: ClassificationMetrics, *, mistakes: Figure | None = None) -> tuple[Section, ...]:
    """Show scores, confusion matrix, confused pairs, mistakes, calibration and classes, in that order.

    Args:
        metrics: Of the test set.
        mistakes: From `mistakes_section`. Default: none are shown.
    """
    sections: list[Section] = [_scores(metrics)]
    if metrics.absent_classes:
        names = ", ".join(metrics.absent_classes)
        sections.append(
            Notes(
                "Classes without test images",
                (f"{names}: nothing is known about them, and no mean below or above includes them.",),
                warning=True,
            )
        )
    sections.append(
        Figure(
            title="Confusion matrix",
            caption=(
                "A row is a true class, a column what it was taken for. Right answers are blue and mistakes "
                "orange, by their share of the row; mistakes darken faster, so that rare ones can be seen."
            ),
            image=figure_bytes(plot_confusion(metrics.confusion, metrics.classes)),
            alternative=f"Confusion matrix of {len(metrics.classes)} classes",
        )
    )
    if metrics.confused_pairs:
        sections.append(_pairs(metrics))
    if mistakes is not None:
        sections.append(mistakes)
    sections.append(
        Figure(
            title="Calibration",
            caption=(
                "How often an answer is right, by how sure the model is of it. Where bars end below the orange "
                "marks the model is too sure of itself. Pale bars stand for fewer than ten images. The expected "
                f"calibration error is {format_percent(metrics.expected_calibration_error)}."
            ),
            image=figure_bytes(plot_reliability(metrics.calibration)),
            alternative="Accuracy against confidence in 15 bins",
        )
    )
    sections.append(_classes(metrics))
    return tuple(sections)


def mistakes_section(
    mistakes: Sequence[Mistake], images: Sequence[NDArray[np.uint8]], classes: Sequence[str]
) -> Figure:
    """Show the surest mistakes as images.

    Args:
        mistakes: From `errors_most_confident`, at least one.
        images: Their images, as `plot_gallery` takes them.
        classes: Names of all classes.

    Raises:
        OptionError: If there are no mistakes, or not one image for each.
    """
    captions = [
        _arrow(classes[mistake.label], classes[mistake.predicted]) + f"\n{format_percent(mistake.confidence)}"
        for mistake in mistakes
    ]
    return Figure(
        title="Most confident mistakes",
        caption="Under each image its true class, what it was taken for, and how sure the model was.",
        image=figure_bytes(plot_gallery(images, captions)),
        alternative=f"The {len(mistakes)} mistakes the model was surest of",
    )


def retention_section(*, identical: bool, base_accuracy: float, adapted_accuracy: float) -> Table:
    """Show what is left of the old task.

    Args:
        identical: Whether the base answers with the same bits once the adapter is off.
        base_accuracy: Accuracy of the base on the old task, in (0, 1].
        adapted_accuracy: Accuracy there with the adapter on and the old head, in 0..1.
    """
    kept = format_percent(retention(base_accuracy, adapted_accuracy))
    off = "bit-identical to the base" if identical else "NOT identical to the base"
    return Table(
        title="What is left of the old task",
        headers=("Adapter", "Accuracy on the old task", "Kept"),
        rows=(
            ("off", format_percent(base_accuracy), off),
            ("on, with the old head", format_percent(adapted_accuracy), f"{kept} of the accuracy"),
        ),
    )


def _scores(metrics: ClassificationMetrics) -> Table:
    rows = [
        ("Accuracy", format_interval(metrics.accuracy, metrics.accuracy_interval), "share classified right"),
        ("Balanced accuracy", format_percent(metrics.balanced_accuracy), "mean sensitivity of the classes"),
        ("Macro F1", format_percent(metrics.macro_f1), "mean of precision and sensitivity, every class alike"),
    ]
    if metrics.macro_auc is not None:
        rows.append(("AUC", format_number(metrics.macro_auc, digits=4), "ranking; 0.5 is chance, 1 is perfect"))
    if metrics.macro_specificity is not None:
        rows.append(("Specificity", format_percent(metrics.macro_specificity), "mean share of others left alone"))
    if metrics.top5_accuracy is not None:
        rows.append(("Top-5 accuracy", format_percent(metrics.top5_accuracy), "right within five guesses"))
    rows += [
        (
            "Expected calibration error",
            format_percent(metrics.expected_calibration_error),
            "gap between confidence and accuracy",
        ),
        (
            "Negative log likelihood",
            format_number(metrics.negative_log_likelihood, digits=4),
            "in nats; lower is better",
        ),
    ]
    return Table(
        title="Scores",
        headers=("Measure", "Test set", "Meaning"),
        rows=tuple(rows),
        caption=f"On {format_count(metrics.n)} test images; intervals are Wilson's, 95 %.",
    )


def _pairs(metrics: ClassificationMetrics) -> Table:
    shown = metrics.confused_pairs[:_MOST_PAIRS]
    share = sum(pair.share for pair in shown)
    these = "This pair explains" if len(shown) == 1 else f"These {len(shown)} pairs explain"
    return Table(
        title="Most confused pairs",
        headers=("Classes", "First taken for second", "Second taken for first", "Share of all errors"),
        rows=tuple(
            (
                f"{pair.first} ↔ {pair.second}",
                pair.first_as_second,
                pair.second_as_first,
                format_percent(pair.share),
            )
            for pair in shown
        ),
        caption=f"{these} {format_percent(share)} of all {format_count(metrics.errors)} errors.",
    )


def _classes(metrics: ClassificationMetrics) -> Table:
    return Table(
        title="Class by class",
        headers=("Class", "Images", "Precision", "Sensitivity", "Specificity", "F1", "AUC"),
        rows=tuple(
            (
                scores.name,
                scores.support,
                format_percent(scores.precision),
                format_percent(scores.sensitivity),
                format_percent(scores.specificity),
                format_percent(scores.f1),
                format_number(scores.auc, digits=4),
            )
            for scores in metrics.per_class
        ),
        caption="Each class against all others. Sensitivity is the share of a class that is found (recall).",
        folded=len(metrics.classes) > _MOST_CLASSES,
    )


def _arrow(label: str, predicted: str) -> str:
    """Write "label → predicted", on two lines when it is long."""
    label, predicted = printable(label), printable(predicted)
    return f"{label}{' ' if len(label) + len(predicted) <= _MOST_LETTERS else chr(10)}→ {predicted}"
