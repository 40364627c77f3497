"""The plots of the page: each arm's difference to the k x k LoRA, and the accuracy of each draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arms import HEAD, LORA, LORA_ALL, WHOLE, forms_of
from common.comparison import Comparison
from common.figures import differences

from convpeft.reporting import save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = dict[str, list[tuple[Comparison, str]]]


def draw_all(comparisons: Sequence[Comparison], folder: Path) -> Drawn:
    """Write the plots and return their names with what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: Drawn = {"differences": [], "draws": []}
    for found in comparisons:
        if len(found.seeds) > 1:
            titles = [str(setting) for setting in found.settings]
            figure = differences(found, LORA, titles, colour=lambda arm, found=found: colour_of(found, arm))
            save_figure(figure, folder / f"differences-{found.name}.png")
            drawn["differences"].append((found, f"differences-{found.name}.png"))
        save_figure(_draws(found), folder / f"draws-{found.name}.png")
        drawn["draws"].append((found, f"draws-{found.name}.png"))
    return drawn


def colour_of(found: Comparison, arm: str) -> str:
    """CoLoRA's forms, LoRA, the two ends, and the rest."""
    if arm in forms_of(found):
        return BLUE
    return {LORA: GREEN, LORA_ALL: GREEN, WHOLE: ORANGE, HEAD: INK}.get(arm, PURPLE)


def _draws(found: Comparison) -> Figure:
    """A panel an amount of images, a row an arm, a mark a draw."""
    figure = new_figure(10.5, 1.3 + 0.36 * len(found.arms))
    panels: Sequence[Axes] = figure.subplots(1, len(found.settings), sharey=True, squeeze=False)[0]
    for axes, setting in zip(panels, found.settings, strict=True):
        style_axes(axes, title=str(setting), x="test accuracy, %", grid=False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for place, arm in enumerate(found.arms):
            cell, shade = found.cell(arm, setting), colour_of(found, arm)
            values = [100 * value for value in cell.accuracies]
            axes.plot(values, [place] * len(values), "o", color=shade, alpha=0.6, markersize=6, markeredgewidth=0)
            axes.plot([100 * cell.mean] * 2, [place - 0.3, place + 0.3], color=shade, linewidth=2)
    panels[0].set_yticks(range(len(found.arms)), found.arms, color=INK)
    panels[0].invert_yaxis()
    return figure
