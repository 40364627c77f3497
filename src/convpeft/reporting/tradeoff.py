"""Draw what accuracy costs in trainable parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convpeft.errors import OptionError
from convpeft.reporting.canvas import BLUE, GRID, INK, SOFT, any_script, new_figure, style_axes
from convpeft.reporting.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Where a label may stand from its point, in typographic points, the best first.
_PLACES = (
    (6, -7, "left", "top"),
    (-6, 7, "right", "bottom"),
    (10, 0, "left", "center"),
    (-10, 0, "right", "center"),
    (0, 10, "center", "bottom"),
    (0, -10, "center", "top"),
    (6, 14, "left", "bottom"),
    (-6, -14, "right", "top"),
    (12, -26, "left", "top"),
    (-12, 26, "right", "bottom"),
)


@dataclass(frozen=True)
class TradeoffPoint:
    """One way to adapt a model.

    Attributes:
        label: What it is called.
        trainable: Trainable parameters; 0 for a model used as it is, drawn as a line across.
        accuracy: In 0..1.
        low: Lower end of the accuracy's interval.
        high: Upper end of it.
    """

    label: str
    trainable: int
    accuracy: float
    low: float
    high: float


def plot_tradeoff(points: Sequence[TradeoffPoint]) -> Figure:
    """Draw accuracy with its interval against trainable parameters on a logarithmic axis.

    Args:
        points: What is compared. Those that no smaller one equals are blue and joined, the others grey.

    Raises:
        OptionError: If there are no points.
    """
    if not points:
        raise OptionError("plot_tradeoff: expected at least one point, got none. Pass one point a method.")
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    style_axes(axes, title="Accuracy against trainable parameters", x="trainable parameters", y="accuracy")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    trained = sorted((point for point in points if point.trainable > 0), key=_order)
    front = _front(trained)
    axes.plot([p.trainable for p in front], [100 * p.accuracy for p in front], color=BLUE, alpha=0.4, zorder=1)
    for point in trained:
        _draw_point(axes, point, colour=BLUE if point in front else SOFT)
    if trained:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.minorticks_off()
        axes.set_xlim(trained[0].trainable / 4, trained[-1].trainable * 4)
    low, high = axes.get_ylim()
    for point in points:
        if point.trainable <= 0:
            # A base far below the rest would squeeze what is compared into one line.
            _draw_reference(axes, point, far=bool(trained) and 100 * point.accuracy < low - (high - low))
    _label_points(figure, axes, trained)
    return figure


def _order(point: TradeoffPoint) -> tuple[int, float]:
    return point.trainable, -point.accuracy


def _front(trained: Sequence[TradeoffPoint]) -> list[TradeoffPoint]:
    """Keep the points that are more accurate than every smaller one."""
    front: list[TradeoffPoint] = []
    for point in trained:
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _draw_point(axes: Axes, point: TradeoffPoint, *, colour: str) -> None:
    # An interval need not hold the point, and error bars may not be negative.
    below = max(0.0, 100 * (point.accuracy - point.low))
    above = max(0.0, 100 * (point.high - point.accuracy))
    axes.errorbar(
        [point.trainable],
        [100 * point.accuracy],
        yerr=[[below], [above]],
        fmt="o",
        markersize=7,
        markeredgecolor="white",
        color=colour,
        elinewidth=1.4,
        capsize=3,
    )


def _draw_reference(axes: Axes, point: TradeoffPoint, *, far: bool) -> None:
    name = f"{printable(point.label, limit=40)}: {100 * point.accuracy:.1f} %"
    if not far:
        axes.axhline(100 * point.accuracy, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        f"{name}, far below" if far else name,
        (1 if far else 0, 0 if far else 100 * point.accuracy),
        xycoords=("axes fraction", "axes fraction" if far else "data"),
        xytext=(-4 if far else 4, 4),
        ha="right" if far else "left",
        textcoords="offset points",
        fontsize=8.5,
        color=SOFT,
        parse_math=False,
    )


def _label_points(figure: Figure, axes: Axes, trained: Sequence[TradeoffPoint]) -> None:
    """Write each label beside its point, at the first place where it covers no other."""
    from matplotlib.transforms import Bbox

    with any_script():
        figure.draw_without_rendering()
        taken: list[Bbox] = []
        for point in trained:
            x, y = axes.transData.transform((point.trainable, 100 * point.accuracy))
            _, bottom = axes.transData.transform((point.trainable, 100 * point.low))
            _, top = axes.transData.transform((point.trainable, 100 * point.high))
            taken.append(Bbox.from_extents(x - 9, min(bottom, y - 9), x + 9, max(top, y + 9)))
        for point in trained:
            taken.append(_place_label(axes, point, taken))


def _place_label(axes: Axes, point: TradeoffPoint, taken: Sequence[Bbox]) -> Bbox:
    label = axes.annotate(
        printable(point.label, limit=40),
        (point.trainable, 100 * point.accuracy),
        textcoords="offset points",
        xytext=(0, 0),
        fontsize=8.5,
        color=INK,
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )
    label.set_in_layout(False)
    for x, y, horizontal, vertical in (*_PLACES, _PLACES[0]):
        label.set(position=(x, y), ha=horizontal, va=vertical)
        box = label.get_window_extent()
        inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
        if inside and not any(box.overlaps(other) for other in taken):
            break
    return label.get_window_extent()
