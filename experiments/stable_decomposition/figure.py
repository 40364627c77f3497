"""The plots of the page: sensitivities, rates of restoring, and accuracy against operations and parameters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plan import EQUAL, METHODS, PLAIN, RATES, RESTORING, SEARCH, STABLE
from summary import Line, Summary, accuracy, left

from convpeft.reporting import save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOK = dict(zip(METHODS, ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D")), strict=True))
_KEPT = {"multiplications": "multiplications left", "parameters": "parameters left"}


def draw_all(summary: Summary, folder: Path) -> list[str]:
    """Write the plots that there are figures for, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Figure] = {}
    if summary.networks(EQUAL):
        made["sensitivity"] = _sensitivity(summary)
    if summary.tuned(PLAIN) and summary.tuned(STABLE):
        made["rates"] = _rates(summary)
    for network in summary.networks(SEARCH):
        made[network.replace("/", "-")] = _tradeoff(summary, network)
    for name, figure in made.items():
        save_figure(figure, folder / f"{name}.png")
    return list(made)


def _sensitivity(summary: Summary) -> Figure:
    """A dot a layer, seed and share: the sensitivity with the correction against that without."""
    networks = summary.networks(EQUAL)
    figure = new_figure(4.6 * len(networks) + 0.4, 4.1)
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        style_axes(axes, title=network, x="sensitivity, plain CPD", y="with the correction")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        shares = summary.settings(EQUAL, network)
        ends: list[float] = []
        for share, colour in zip(shares, (BLUE, GREEN, PURPLE, ORANGE, SOFT), strict=False):
            layers = [
                x for line in summary.of(EQUAL, network=network, method=STABLE, setting=share) for x in line["layers"]
            ]
            x, y = ([each[key] for each in layers] for key in ("plain_sensitivity", "sensitivity"))
            ends += [*x, *y]
            axes.plot(x, y, "o", color=colour, markersize=4, alpha=0.55, label=f"share {share:g}", markeredgewidth=0)
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=SOFT, linewidth=1, label="equal")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _rates(summary: Summary) -> Figure:
    """Accuracy after restoring against the learning rate, with the plain and with the corrected decomposition."""
    figure = new_figure(8.6, 3.7)
    panels: Sequence[Axes] = figure.subplots(1, len(RESTORING), sharey=True, squeeze=False)[0]
    for axes, arm in zip(panels, RESTORING, strict=True):
        style_axes(axes, title=f"restored by {arm}", x="learning rate", y="test accuracy" if axes is panels[0] else "")
        for method in (STABLE, PLAIN):
            line = summary.tuned(method)
            assert line is not None
            colour, marker = _LOOK[method]
            tried = [each for each in line["tried"] if each["arm"] == arm and "accuracy" in each]
            x, y = [each["rate"] for each in tried], [100 * each["accuracy"] for each in tried]
            axes.plot(x, y, color=colour, marker=marker, markeredgecolor="white", markersize=7, label=method)
            axes.axhline(100 * line["thin"]["accuracy"], color=colour, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        _in_percent(axes, "y")
    panels[0].legend(frameon=False, fontsize=8.5, labelcolor=INK, title="dotted: thin", title_fontsize=8.5)
    return figure


def _tradeoff(summary: Summary, network: str) -> Figure:
    """Test accuracy against what is left: hollow marks are thin, filled ones restored by full fine-tuning."""
    figure = new_figure(9.6, 4.0)
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
    before = statistics.fmean(line["before"]["accuracy"] for line in summary.of(SEARCH, network=network))
    for axes, (key, title) in zip(panels, _KEPT.items(), strict=True):
        style_axes(
            axes, title=network if axes is panels[0] else "", x=title, y="test accuracy" if axes is panels[0] else ""
        )
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.axhline(100 * before, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        for method in summary.methods(network):
            colour, marker = _LOOK[method]
            cells = [
                summary.of(SEARCH, network=network, method=method, setting=drop)
                for drop in summary.settings(SEARCH, network)
            ]
            cells = [lines for lines in cells if lines]
            _put(axes, cells, key, "thin", color=colour, marker=marker, linestyle="--", hollow=True)
            done = [each for lines in cells if (each := [line for line in lines if line.get("restored")])]
            _put(axes, done, key, "full", color=colour, marker=marker, linestyle="-", hollow=False)
            for lines in done:
                x = statistics.fmean(100 * left(line, key) for line in lines)
                ends = [100 * statistics.fmean(accuracy(lines, stage)[0]) for stage in ("thin", "full")]
                axes.plot([x] * 2, ends, color=colour, linewidth=1, zorder=1)
            axes.plot([], [], color=colour, marker=marker, linestyle="--", markerfacecolor="white", label=method)
        _in_percent(axes, "xy")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8.5, labelcolor=INK, loc="outside lower center", ncols=4)
    return figure


def _put(
    axes: Axes,
    cells: Sequence[Sequence[Line]],
    key: str,
    stage: str,
    *,
    color: str,
    marker: str,
    linestyle: str,
    hollow: bool,
) -> None:
    """A mark a cell at the mean of its seeds, and thin lines from the least to the most of them."""
    for lines in cells:
        x, y = [100 * left(line, key) for line in lines], [100 * each for each in accuracy(lines, stage)[0]]
        axes.plot([min(x), max(x)], [statistics.fmean(y)] * 2, color=color, linewidth=1, alpha=0.4)
        axes.plot([statistics.fmean(x)] * 2, [min(y), max(y)], color=color, linewidth=1, alpha=0.4)
    means = [statistics.fmean(100 * left(line, key) for line in lines) for lines in cells]
    heights = [100 * statistics.fmean(accuracy(lines, stage)[0]) for lines in cells]
    order = sorted(range(len(cells)), key=lambda place: means[place])
    axes.plot(
        [means[place] for place in order],
        [heights[place] for place in order],
        color=color,
        marker=marker,
        markersize=7,
        markerfacecolor="white" if hollow else color,
        markeredgecolor=color,
        linestyle=linestyle,
        linewidth=1,
    )


def _in_percent(axes: Axes, which: str) -> None:
    from matplotlib.ticker import StrMethodFormatter

    for axis in which:
        getattr(axes, f"{axis}axis").set_major_formatter(StrMethodFormatter("{x:.4g} %"))
