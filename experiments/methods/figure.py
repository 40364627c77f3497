"""The plot of the page: test accuracy against trained parameters, every entry named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from plan import BASELINE, WHOLE
from summary import Outcome, Row

from convpeft.reporting.canvas import BLUE, GRID, INK, ORANGE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_RADII = (7, 13, 20, 28, 38, 50, 64)  # of a label from its dot, in typographic points
_ANGLES = (0, 180, 30, 330, 150, 210, 60, 300, 120, 240, 90, 270)


def draw(outcomes: dict[str, Outcome]) -> Figure:
    """One panel a task: means as dots, and a bar from the lowest seed to the highest."""
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(10.5, 5.4 * len(outcomes))
    panels = figure.subplots(len(outcomes), 1, squeeze=False)[:, 0]
    for axes, outcome in zip(panels, outcomes.values(), strict=True):
        style_axes(axes, title=outcome.budget["title"], x="trained parameters, the head included", y="test accuracy")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for row in outcome.rows:
            mean, low, high = _accuracy(row)
            axes.plot([row.trainable] * 2, [low, high], color=_colour(row), linewidth=1.2, alpha=0.3)
            axes.plot([row.trainable], [mean], "o", color=_colour(row), markersize=6, markeredgecolor="white")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.margins(x=0.09)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    figure.draw_without_rendering()
    for axes, outcome in zip(panels, outcomes.values(), strict=True):
        _label_all(axes, outcome.rows, pixels=figure.dpi / 72)
    return figure


def _accuracy(row: Row) -> tuple[float, float, float]:
    values = [100 * value for value in row.values("test_accuracy")]
    return sum(values) / len(values), min(values), max(values)


def _colour(row: Row) -> str:
    return {BASELINE: INK, WHOLE: ORANGE}.get(row.entry, BLUE)


def _label_all(axes: Axes, rows: Sequence[Row], *, pixels: float) -> None:
    """Write each name at the nearest place where it covers neither dot nor name, joined to its dot where far."""
    from matplotlib.transforms import Bbox

    taken: list[Bbox] = []
    for row in rows:
        x, y = axes.transData.transform((row.trainable, _accuracy(row)[0]))
        taken.append(Bbox.from_bounds(x - 3.5 * pixels, y - 3.5 * pixels, 7 * pixels, 7 * pixels))
    for row in rows:
        taken.append(_label(axes, row, taken))


def _label(axes: Axes, row: Row, taken: Sequence[Bbox]) -> Bbox:
    place, marked = (row.trainable, _accuracy(row)[0]), row.entry in (BASELINE, WHOLE)
    label = axes.annotate(
        row.entry,
        place,
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=7.5,
        color=_colour(row) if marked else INK,
        fontweight="bold" if marked else "normal",
        va="center",
    )
    label.set_in_layout(False)
    box = label.get_window_extent()
    for x, y, side in (*_places(), next(_places())):
        label.set(position=(x, y), ha=side)
        box = label.get_window_extent()
        inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
        if inside and not any(box.overlaps(other) for other in taken):
            if math.hypot(x, y) > _RADII[1]:
                line = {"arrowstyle": "-", "color": SOFT, "alpha": 0.6, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
                axes.annotate("", place, xytext=(x, y), textcoords="offset points", arrowprops=line)
            break
    return box


def _places() -> Iterator[tuple[float, float, str]]:
    for radius in _RADII:
        for angle in _ANGLES:
            x, y = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            yield x, y, "center" if abs(x) < 1 else "left" if x > 0 else "right"
