"""The plots of the page: each arm's difference to full fine-tuning by transfer, and scores against size and time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arms import (
    ALTERED,
    BIASES,
    HEAD,
    LESS_CONV1,
    LESS_CONV2,
    PARALLEL,
    PARALLEL_COPY,
    SERIAL,
    SERIAL_COPY,
    WHOLE,
)
from common.comparison import Comparison
from effects import effect
from scores import Score, Share

from convpeft.evaluation import mean_interval
from convpeft.reporting import save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAMILIES = (
    ("parallel", (*PARALLEL, *PARALLEL_COPY, LESS_CONV1, LESS_CONV2), BLUE, "o"),
    ("serial", (*SERIAL, *SERIAL_COPY), GREEN, "s"),
    ("weight altered", ALTERED, PURPLE, "^"),
    ("biases", (BIASES,), "#b58900", "P"),
    ("head alone", (HEAD,), INK, "X"),
    ("full", (WHOLE,), ORANGE, "D"),
)


def draw_all(
    comparisons: Sequence[Comparison],
    scores: Sequence[Score],
    sizes: Mapping[str, int],
    times: Mapping[str, Share],
    folder: Path,
) -> list[str]:
    """Write the plots and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Figure] = {}
    if all(len(found.seeds) > 1 for found in comparisons):
        made["differences"] = _differences(comparisons)
        made["scores"] = _scores(scores, sizes, times)
    for name, figure in made.items():
        save_figure(figure, folder / f"{name}.png")
    return list(made)


def _look(arm: str) -> tuple[str, str]:
    return next((colour, marker) for _, arms, colour, marker in _FAMILIES if arm in arms)


def _differences(comparisons: Sequence[Comparison]) -> Figure:
    """A panel a transfer, a row an arm: thick over the draws of images, thin over the test images."""
    arms = [arm for arm in comparisons[0].arms if arm != WHOLE]
    figure = new_figure(3.1 * len(comparisons) + 1.4, 1.4 + 0.34 * len(arms))
    panels: Sequence[Axes] = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    for axes, found in zip(panels, comparisons, strict=True):
        style_axes(axes, title=found.content["title"], x="points more accurate than full", grid=False)
        axes.axvline(0, color=ORANGE, linewidth=1.2)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for place, arm in enumerate(arms):
            if arm not in found.arms:
                continue
            gap = effect(found, [arm], [WHOLE])
            assert gap.seeds.low is not None and gap.seeds.high is not None
            colour, marker = _look(arm)
            bar = {"color": colour if gap.sign else SOFT, "solid_capstyle": "butt"}  # a round end reaches over zero
            axes.plot([100 * gap.low, 100 * gap.high], [place + 0.17] * 2, linewidth=1, **bar)
            axes.plot([100 * gap.seeds.low, 100 * gap.seeds.high], [place] * 2, linewidth=2.6, **bar)
            axes.plot(
                [100 * gap.seeds.mean], [place], marker, color=bar["color"], markersize=6, markeredgecolor="white"
            )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.4g}" if value else "0")
    panels[0].set_yticks(range(len(arms)), arms, color=INK)
    panels[0].invert_yaxis()
    return figure


def _scores(scores: Sequence[Score], sizes: Mapping[str, int], times: Mapping[str, Share]) -> Figure:
    """The score against the parameters beside the head, and against the time of an epoch where that is measured."""
    figure = new_figure(10.5, 4.4)
    columns = 2 if times else 1
    panels: Sequence[Axes] = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    style_axes(panels[0], title="Size", x="parameters beside the head, ResNet-20", y="decathlon score")
    for arm, score in ((each.arm, each) for each in scores):
        if sizes[arm]:
            _put(panels[0], score, sizes[arm])
        if arm in times:
            _put(panels[-1], score, times[arm].mean)
    panels[0].set_xscale("log")
    panels[0].tick_params(which="both", length=0)
    if times:
        style_axes(panels[1], title="Time", x="time of an epoch as a share of full, ResNet-20")
        panels[1].set_xlim(0, 1.05 * max(share.mean for share in times.values()))
    for name, _, colour, marker in _FAMILIES:
        panels[-1].plot([], [], marker, color=colour, label=name, linestyle="none")
    panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _put(axes: Axes, score: Score, x: float) -> None:
    colour, marker = _look(score.arm)
    mean = statistics.fmean(score.scores)
    low, high = mean_interval(score.scores)
    axes.errorbar(
        [x],
        [mean],
        yerr=[[mean - low], [high - mean]],
        color=colour,
        marker=marker,
        markersize=6,
        markeredgecolor="white",
        linestyle="none",
        elinewidth=1.1,
    )
