"""Draw how training went and how honest the probabilities are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from convpeft.errors import OptionError
from convpeft.reporting.canvas import BLUE, INK, ORANGE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from convpeft.evaluation.calibration import CalibrationBin

# The accuracy of fewer images than this says little.
_FEW = 10


def plot_curves(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Draw loss, validation accuracy and learning rate over the epochs.

    Args:
        history: One row an epoch with the keys epoch, train_loss, val_loss, val_accuracy (0..1) and lr; a missing,
            None or NaN value leaves a gap.

    Raises:
        OptionError: If there are no rows.
    """
    if not history:
        raise OptionError("plot_curves: expected at least one epoch, got none. Plot after the first epoch.")
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = new_figure(10, 3.1)
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=[4, 4, 2.6])
    _draw_line(loss, history, "train_loss", colour=BLUE, label="training")
    _draw_line(loss, history, "val_loss", colour=ORANGE, label="validation")
    _draw_line(accuracy, history, "val_accuracy", colour=ORANGE, label="validation", percent=True)
    _draw_line(rate, history, "lr", colour=SOFT, label="learning rate")
    style_axes(loss, title="Loss", x="epoch")
    style_axes(accuracy, title="Validation accuracy", x="epoch")
    style_axes(rate, title="Learning rate", x="epoch")
    loss.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    accuracy.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    for axes in (loss, accuracy, rate):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    rate.set_ylim(bottom=0)
    _mark_best(accuracy, history)
    return figure


def _draw_line(
    axes: Axes,
    history: Sequence[Mapping[str, float | None]],
    key: str,
    *,
    colour: str,
    label: str,
    percent: bool = False,
) -> None:
    values = [_known(row.get(key)) * (100 if percent else 1) for row in history]
    # A lone point has no line to be seen by.
    marker = "o" if len(history) <= 12 else ""
    epochs = [_known(row.get("epoch")) for row in history]
    axes.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, markersize=3.6, label=label)


def _mark_best(axes: Axes, history: Sequence[Mapping[str, float | None]]) -> None:
    scores = [(_known(row.get("val_accuracy")), _known(row.get("epoch"))) for row in history]
    scores = [(score, epoch) for score, epoch in scores if not math.isnan(score)]
    if not scores:
        return
    best, epoch = max(scores, key=lambda pair: (pair[0], -pair[1]))
    axes.margins(y=0.16)
    axes.plot([epoch], [100 * best], "o", markersize=8, markerfacecolor="white", markeredgewidth=1.8, color=ORANGE)
    # The label leans towards the middle, away from the nearer edge.
    middle = (scores[0][1] + scores[-1][1]) / 2
    axes.annotate(
        f"best {100 * best:.2f} %",
        (epoch, 100 * best),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center" if len(scores) == 1 else "right" if epoch > middle else "left",
        fontsize=8.5,
        color=INK,
    )


def plot_reliability(bins: Sequence[CalibrationBin]) -> Figure:
    """Draw accuracy against confidence, and how many images each bin of confidence holds.

    Args:
        bins: As in `ClassificationMetrics.calibration`; those with fewer than ten images are pale.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    figure = new_figure(5.4, 5.4)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    filled = [each for each in bins if each.count]
    for each in filled:
        middle, width = (each.low + each.high) / 2, 0.88 * (each.high - each.low)
        faint = each.count < _FEW
        upper.bar(middle, each.accuracy or 0.0, width, color=BLUE, alpha=0.25 if faint else 0.85)
        level = each.confidence or 0.0
        upper.plot([middle - width / 2, middle + width / 2], [level, level], color=ORANGE, linewidth=2.2)
    lower.bar(
        [(each.low + each.high) / 2 for each in filled],
        [each.count for each in filled],
        [0.88 * (each.high - each.low) for each in filled],
        color=SOFT,
    )
    style_axes(upper, y="accuracy")
    style_axes(lower, x="confidence", y="images")
    upper.plot([], [], "s", color=BLUE, label="accuracy")
    upper.plot([], [], color=ORANGE, linewidth=2.2, label="mean confidence")
    upper.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3)
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    lower.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    return figure


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)
