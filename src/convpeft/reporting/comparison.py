"""Draw a comparison: what accuracy costs, and how the arms learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, new_figure, style_axes
from convpeft.reporting.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK, "#e69f00", "#56b4e9", SOFT)
_MARKERS = "osD^vPX*"
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class CostPoint:
    """One arm: what it costs, its accuracy in 0..1 with the ends of the interval, and whether nothing beats it."""

    label: str
    cost: float
    accuracy: float
    low: float
    high: float
    on_front: bool


def plot_costs(panels: Mapping[str, Sequence[CostPoint]], *, units: Mapping[str, Callable[[float], str]]) -> Figure:
    """Draw accuracy against each cost on a logarithmic axis; the Pareto front is joined and ringed.

    Args:
        panels: The points of each panel, by what its cost is called; the same arms in the same order.
        units: How a cost is written, by the same names.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

    def written(unit: Callable[[float], str]) -> FuncFormatter:
        def at(value: float, position: int | None = None) -> str:
            return unit(value)

        return FuncFormatter(at)

    labels = list(dict.fromkeys(point.label for points in panels.values() for point in points))
    figure = new_figure(3.6 * max(2, len(panels)), 3.6 + 0.25 * -(-len(labels) // _MOST_COLUMNS))
    for axes, (name, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        style_axes(axes, title=f"Accuracy against {name}", x=f"{name}, logarithmic")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        joined = sorted((point for point in points if point.on_front), key=lambda point: point.cost)
        axes.plot([p.cost for p in joined], [100 * p.accuracy for p in joined], color=SOFT, linewidth=1, zorder=1)
        for point in points:
            _draw(axes, point, labels.index(point.label))
        axes.set_xscale("log")
        axes.minorticks_off()
        costs = [point.cost for point in points]
        ends = (min(costs), max(costs))
        middle = (ends[0] * ends[1]) ** 0.5
        # where all cost about the same, three labels would stand in one another
        axes.set_xticks(list(dict.fromkeys((ends[0], middle, ends[1]))) if ends[1] > 3 * ends[0] else [middle])
        axes.set_xlim(ends[0] / 1.6, ends[1] * 1.6)
        axes.xaxis.set_major_formatter(written(units[name]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    _legend(figure)
    return figure


def plot_learning(histories: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw the validation accuracy of each arm over the epochs: every seed pale, their mean bold.

    Args:
        histories: Validation accuracies in 0..1 by epoch, one sequence a seed, by the arm's label.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = new_figure(8, 3.8 + 0.25 * -(-len(histories) // _MOST_COLUMNS))
    axes = figure.subplots()
    style_axes(axes, title="Validation accuracy", x="epoch")
    for number, (label, seeds) in enumerate(histories.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for values in seeds:
            axes.plot(range(1, len(values) + 1), [100 * v for v in values], color=colour, alpha=0.25, linewidth=1)
        shortest = min(map(len, seeds))
        means = [100 * sum(values[epoch] for values in seeds) / len(seeds) for epoch in range(shortest)]
        axes.plot(
            range(1, shortest + 1),
            means,
            color=colour,
            linewidth=1.8,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            label=printable(label, limit=40),
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    _legend(figure)
    return figure


def _draw(axes: Axes, point: CostPoint, number: int) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    axes.errorbar(
        [point.cost],
        [100 * point.accuracy],
        yerr=[[max(0.0, 100 * (point.accuracy - point.low))], [max(0.0, 100 * (point.high - point.accuracy))]],
        fmt=_MARKERS[number % len(_MARKERS)],
        markersize=7,
        color=colour,
        markeredgecolor=INK if point.on_front else "white",
        markeredgewidth=1.4 if point.on_front else 0.8,
        elinewidth=1.2,
        capsize=3,
        label=printable(point.label, limit=40),
    )


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=8.5, labelcolor=INK, loc="outside lower center", ncols=_MOST_COLUMNS
    )
