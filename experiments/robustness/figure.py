"""The plots of the page: accuracy of every arm, by corruption, and of LoRA-C by the number of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from summary import CLEAN, HEAD, MCA_15, MCA_19, NORMS, WHOLE, Summary

from convpeft.data.corruptions import COMMON, EXTRA
from convpeft.reporting import save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, new_figure, style_axes
from convpeft.reporting.corruptions import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 15  # points of a difference that have the full colour
_DARK = 9  # from here on dark text cannot be read
_LOOKS = {CLEAN: (SOFT, "o"), MCA_15: (GREEN, "^"), MCA_19: (BLUE, "s"), "rain": (PURPLE, "v")}


def draw_all(summary: Summary, folder: Path) -> list[str]:
    """Write the plots of a task and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"arms": _arms(summary)}
    if summary.names:
        figures["corruptions"] = _corruptions(summary)
    if MCA_19 in summary.measures and len(summary.lora_c(setting="rk", ratio=2.0)) > 1:
        figures["sizes"] = _sizes(summary)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{summary.name}-{name}.png")
    return list(figures)


def _arms(summary: Summary) -> Figure:
    """A row an arm: its accuracy by every measure, with the interval over the seeds."""
    figure = new_figure(9.5, 1.3 + 0.33 * len(summary.arms))
    axes = figure.subplots()
    style_axes(axes, x="accuracy, percent", grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for number, measure in enumerate(summary.measures):
        colour, marker = _LOOKS[measure]
        shift = 0.16 * (number - (len(summary.measures) - 1) / 2)
        levels = [summary.level(arm, measure) for arm in summary.arms]
        means = np.array([100 * level.mean for level in levels])
        ends = np.array([[100 * end for end in level.interval] for level in levels])
        axes.errorbar(
            means,
            np.arange(len(levels)) + shift,
            xerr=[means - ends[:, 0], ends[:, 1] - means],
            color=colour,
            marker=marker,
            markersize=5.5,
            markeredgecolor="white",
            linestyle="none",
            elinewidth=1.2,
            label=measure,
        )
    axes.set_yticks(range(len(summary.arms)), summary.arms, color=INK)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _corruptions(summary: Summary) -> Figure:
    """A row a corruption, a column an arm: its accuracy, in the colour of its difference to full fine-tuning."""
    arms = shown_arms(summary)
    table = np.array([[100 * summary.level(arm, name).mean for arm in arms] for name in summary.names])
    gaps = table - np.array([[100 * summary.level(WHOLE, name).mean] for name in summary.names])
    figure = new_figure(2.2 + 0.95 * len(arms), 1.5 + 0.29 * len(summary.names))
    axes = figure.subplots()
    axes.imshow(gaps, cmap="RdBu", vmin=-_MOST, vmax=_MOST, aspect="auto", interpolation="nearest")
    style_axes(axes, grid=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(arms)), [short(summary, arm).replace(", ", ",\n", 1) for arm in arms], color=INK)
    axes.set_yticks(range(len(summary.names)), [words(name) for name in summary.names], color=INK)
    for (row, column), value in np.ndenumerate(table):
        dark = abs(gaps[row, column]) > _DARK
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    for place in (len(COMMON), len(COMMON) + len(EXTRA)):
        if place < len(summary.names):
            axes.axhline(place - 0.5, color=INK, linewidth=1)
    return figure


def _sizes(summary: Summary) -> Figure:
    """Two panels: accuracy against trained parameters, a line for each setting and ratio of LoRA-C."""
    figure = new_figure(10.5, 4.4)
    panels: Sequence[Axes] = figure.subplots(1, 2)
    for axes, measure in zip(panels, (CLEAN, MCA_19), strict=True):
        style_axes(axes, title=measure, x="trained parameters", y="accuracy, percent")
        axes.set_xscale("log")
        axes.tick_params(which="minor", length=0)
        for setting, colour in (("rk", BLUE), ("r", GREEN)):
            for ratio, line in ((2.0, "-"), (0.5, ":")):
                arms = sorted(summary.lora_c(setting=setting, ratio=ratio), key=lambda arm: _trained(summary, arm))
                label = f"LoRA-C, setting {setting}, alpha/r {ratio:g}"
                _joined(axes, summary, arms, measure, color=colour, linestyle=line, marker="o", label=label)
        for arm, colour, marker in ((HEAD, INK, "X"), (NORMS, PURPLE, "P"), (WHOLE, ORANGE, "D")):
            if arm in summary.arms:
                _joined(axes, summary, [arm], measure, color=colour, linestyle="none", marker=marker, label=arm)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        ncols=4,
        loc="outside lower center",
    )
    return figure


def _joined(axes: Axes, summary: Summary, arms: Sequence[str], measure: str, **look: str) -> None:
    levels = [summary.level(arm, measure) for arm in arms]
    places = [_trained(summary, arm) for arm in arms]
    for place, level in zip(places, levels, strict=True):
        axes.plot([place] * 2, [100 * min(level.values), 100 * max(level.values)], color=look["color"], linewidth=1)
    axes.plot(places, [100 * level.mean for level in levels], markeredgecolor="white", markersize=7, **look)


def _trained(summary: Summary, arm: str) -> int:
    return summary.first(arm)["trainable"]


def shown_arms(summary: Summary) -> list[str]:
    """Arms that stand for their kind: every arm but those of LoRA-C's sweep, of which the named one stays."""
    named = summary.named
    return [arm for arm in summary.arms if arm == named or arm not in summary.lora_c()]


def short(summary: Summary, arm: str) -> str:
    """The name of an arm where there is little room."""
    return "lora-c" if arm == summary.named else arm
