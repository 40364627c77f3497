"""The plots of the page: accuracy against trained parameters, what is mistaken for what, and what is kept of MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from summary import Row, Summary

from convpeft.reporting import plot_confusion, save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (SOFT, INK, BLUE, ORANGE, GREEN, PURPLE)
_MARKERS = "Xo^svD"


def draw_all(summary: Summary, folder: Path) -> None:
    """Write every plot of the page as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(_draw_tradeoff(summary), folder / "accuracy.png")
    save_figure(_draw_retention(summary), folder / "retention.png")
    target = list(summary.targets)[-1]
    figure = plot_confusion(summary.chosen(target).confusion, summary.targets[target]["classes"])
    save_figure(figure, folder / "confusion.png")


def _draw_tradeoff(summary: Summary) -> Figure:
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(10, 4.6)
    for axes, target in zip(_panels(figure, summary), summary.targets, strict=True):
        style_axes(axes, title=target, x="trained parameters, the head included", y="test accuracy")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for number, rows in enumerate(_by_arm(summary, target)):
            points = [(row.runs[0]["trainable"], row.of("test_accuracy")) for row in rows]
            axes.errorbar(
                [trained for trained, _ in points],
                [100 * found.mean for _, found in points],
                yerr=[100 * (found.high - found.mean) for _, found in points],
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=6,
                markeredgecolor="white",
                linewidth=1.2,
                elinewidth=1.2,
                capsize=3,
                label=rows[0].title,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    _add_legend(figure)
    return figure


def _draw_retention(summary: Summary) -> Figure:
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(10, 4.4)
    for axes, target in zip(_panels(figure, summary), summary.targets, strict=True):
        rows = [row for row in summary.rows(target) if row.runs[0]["old_head_accuracy"] is not None]
        style_axes(axes, title=f"adapted to {target}", x="MNIST test accuracy with the old head", grid=False)
        axes.axvline(100 * summary.base["test_accuracy"], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        arms = [arm["name"] for arm in summary.grid["arms"]]
        for place, row in enumerate(rows):
            colour, values = _COLOURS[arms.index(row.arm) % len(_COLOURS)], row.values("old_head_accuracy")
            axes.barh(place, 100 * row.of("old_head_accuracy").mean, color=colour, alpha=0.75, height=0.66)
            axes.plot([100 * value for value in values], [place] * len(values), ".", color=INK, markersize=4)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f} %"))
        axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure


def _panels(figure: Figure, summary: Summary) -> list[Axes]:
    return list(figure.subplots(1, len(summary.targets), squeeze=False)[0])


def _by_arm(summary: Summary, target: str) -> list[list[Row]]:
    rows = summary.rows(target)
    return [[row for row in rows if row.arm == arm["name"]] for arm in summary.grid["arms"]]


def _add_legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8.5, labelcolor=INK, loc="outside lower center", ncols=6)
