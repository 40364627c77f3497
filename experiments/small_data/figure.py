"""The plots of the page: accuracy against images a class, and each arm's difference to full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arms import FROZEN, HEAD, WHOLE, adapters_of
from common.comparison import Comparison
from common.figures import differences

from convpeft.reporting import save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF_ADAPTERS = ((BLUE, "o"), (GREEN, "s"), (PURPLE, "^"), ("#56b4e9", "v"), ("#b58900", "P"))
_STEP = 0.075  # between arms at one size, of the distance between two sizes


def draw_all(summaries: Sequence[Comparison], folder: Path) -> list[str]:
    """Write the plots and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(_accuracy(summaries), folder / "accuracy.png")
    drawn = ["accuracy"]
    for summary in summaries:
        if WHOLE in summary.arms and len(summary.seeds) > 1:
            save_figure(_differences(summary), folder / f"differences-{summary.name}.png")
            drawn.append(f"differences-{summary.name}")
    return drawn


def style_of(summary: Comparison, arm: str) -> tuple[str, str, str]:
    """Colour, marker and line of an arm."""
    known = {HEAD: (INK, "X", ":"), WHOLE: (ORANGE, "D", "-"), FROZEN: (ORANGE, "D", "--")}
    if arm in known:
        return known[arm]
    colour, marker = _OF_ADAPTERS[adapters_of(summary).index(arm) % len(_OF_ADAPTERS)]
    return colour, marker, "-"


def _accuracy(summaries: Sequence[Comparison]) -> Figure:
    """A panel a transfer; arms stand side by side at each size, so that their intervals can be told apart."""
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(10.5, 4.9 * len(summaries))
    for axes, summary in zip(figure.subplots(len(summaries), 1, squeeze=False)[:, 0], summaries, strict=True):
        style_axes(axes, title=summary.content["title"], x="training images a class", y="test accuracy")
        for place in range(len(summary.settings) - 1):
            axes.axvline(place + 0.5, color=GRID, linewidth=0.8)
        for number, arm in enumerate(summary.arms):
            cells = [summary.cell(arm, size) for size in summary.settings]
            shift = _STEP * (number - (len(summary.arms) - 1) / 2)
            colour, marker, line = style_of(summary, arm)
            ends = [cell.interval if len(cell.runs) > 1 else (cell.mean, cell.mean) for cell in cells]
            axes.errorbar(
                [place + shift for place in range(len(cells))],
                [100 * cell.mean for cell in cells],
                yerr=[
                    [100 * (cell.mean - low) for cell, (low, _) in zip(cells, ends, strict=True)],
                    [100 * (high - cell.mean) for cell, (_, high) in zip(cells, ends, strict=True)],
                ],
                color=colour,
                marker=marker,
                markersize=6,
                markeredgecolor="white",
                linestyle=line,
                linewidth=1.0,
                elinewidth=1.4,
                capsize=2.5,
                label=arm,
            )
        axes.set_xticks(range(len(summary.settings)), [str(size) for size in summary.settings])
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _differences(summary: Comparison) -> Figure:
    titles = [f"{size} images a class" for size in summary.settings]
    return differences(summary, WHOLE, titles, colour=lambda arm: style_of(summary, arm)[0])
