"""The plots of the page: the learning-forgetting plane, what is kept by amount of data, and the sequences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plan import ARMS, FROZEN, FULL, WISE
from sequences import MODES, SCENARIOS
from summary import Row, Summary
from wording import share

from convpeft.reporting import save_figure
from convpeft.reporting.canvas import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GOLD, _RED = "#b8860b", "#a61c3c"
_LOOK = {  # colour, marker and size
    "head": (SOFT, "X", 7),
    "lora-2": (BLUE, "o", 5),
    "lora-8": (BLUE, "o", 8),
    "lora-32": (BLUE, "o", 11),
    FULL: (ORANGE, "s", 7),
    FROZEN: (_RED, "P", 8),
    WISE: (_GOLD, "D", 5),
    "l2-sp": (GREEN, "^", 8),
    "lwf": (PURPLE, "v", 8),
}
_MODE_LOOK = dict(zip(MODES, ((ORANGE, "s"), (BLUE, "o"), (GREEN, "^"), (SOFT, "X")), strict=True))
_TASKS = {"groups": "groups of letters, a head a task", "turns": "turned letters, one head"}


def draw_all(summary: Summary, folder: Path) -> list[str]:
    """Write the plots that there are figures for, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"plane": _draw_plane(summary), "amounts": _draw_amounts(summary)}
    if summary.sequences:
        made["sequences"] = _draw_sequences(summary)
    for name, figure in made.items():
        save_figure(figure, folder / f"{name}.png")
    return list(made)


def _draw_plane(summary: Summary) -> Figure:
    columns = max(len(summary.fractions_of(name)) for name in summary.transfers)
    figure = new_figure(3.6 * columns + 0.6, 3.3 * len(summary.transfers) + 0.5)
    grid = figure.subplots(len(summary.transfers), columns, squeeze=False)
    for line, (name, transfer) in zip(grid, summary.transfers.items(), strict=True):
        for axes in line[len(summary.fractions_of(name)) :]:
            axes.set_visible(False)
        for axes, fraction in zip(line, summary.fractions_of(name), strict=False):
            images = summary.row(name, fraction, FULL).runs[0]["train_images"]
            first = axes is line[0]
            title = (
                f"{transfer['title']}\n{share(fraction)}: {images:,} images"
                if first
                else f"{share(fraction)}: {images:,}"
            )
            x = "kept of the source, adapter on" if name == list(summary.transfers)[-1] else ""
            style_axes(axes, title=title, x=x, y="target accuracy" if first else "")
            axes.grid(axis="x", color=GRID, linewidth=0.8)
            axes.axvline(100, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
            _put_arms(axes, summary.rows(name, fraction))
            _in_percent(axes)
    _add_legend(figure, grid[0][0], columns=4)
    return figure


def _put_arms(axes: Axes, rows: Sequence[Row]) -> None:
    """Every setting as a mark with the reach of its seeds; rates, coefficients and ranks joined by lines."""
    whole = [row for row in rows if row.arm == FULL and row.chosen]
    for arm, kind in ((FULL, "rate"), (WISE, "coefficient")):
        of_arm = [row for row in rows if row.arm == arm]
        line = sorted(of_arm, key=lambda row: row.runs[0]["lr" if kind == "rate" else "coefficient"])
        _join(axes, line + (whole if arm == WISE else []), _LOOK[arm][0])
    _join(axes, [row for arm in ("lora-2", "lora-8", "lora-32") for row in rows if row.arm == arm], BLUE)
    for row in rows:
        colour, marker, size = _LOOK[row.arm]
        x, y = 100 * row.mean("retention"), 100 * row.mean("test_accuracy")
        for field, other in (("retention", y), ("test_accuracy", x)):
            ends = [100 * pick(row.values(field)) for pick in (min, max)]
            places = (ends, [other] * 2) if field == "retention" else ([other] * 2, ends)
            axes.plot(*places, color=colour, linewidth=1, alpha=0.35)
        hollow = row.arm in (FULL, WISE) and not row.chosen
        axes.plot(
            [x],
            [y],
            marker,
            color="white" if hollow else colour,
            markeredgecolor=colour if hollow else "white",
            markersize=size,
            label=row.title if row.chosen else None,
        )


def _join(axes: Axes, rows: Sequence[Row], colour: str) -> None:
    points = [(100 * row.mean("retention"), 100 * row.mean("test_accuracy")) for row in rows]
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=0.9, alpha=0.5, zorder=1)


def _draw_amounts(summary: Summary) -> Figure:
    figure = new_figure(max(3.5 * len(summary.transfers) + 0.6, 7.2), 3.9)
    panels = figure.subplots(1, len(summary.transfers), squeeze=False)[0]
    for axes, (name, transfer) in zip(panels, summary.transfers.items(), strict=True):
        fractions = summary.fractions_of(name)
        first = axes is panels[0]
        style_axes(axes, title=transfer["title"], x="share of the images", y="kept of the source" if first else "")
        axes.axhline(100, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        arms = [arm for arm in (*ARMS, WISE) if arm in (*summary.budget["arms"], WISE)]
        for arm in arms:
            colour, marker, size = _LOOK[arm]
            kept = [100 * summary.row(name, fraction, arm).mean("retention") for fraction in fractions]
            title = summary.row(name, fractions[0], arm).title
            axes.plot(
                [100 * fraction for fraction in fractions],
                kept,
                color=colour,
                marker=marker,
                markersize=size,
                markeredgecolor="white",
                linewidth=1.1,
                label=title,
            )
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks([100 * fraction for fraction in fractions], [share(fraction) for fraction in fractions])
        axes.set_ylim(bottom=0)
        _percent_y(axes)
    _add_legend(figure, panels[0], columns=4)
    return figure


def _draw_sequences(summary: Summary) -> Figure:
    scenarios = [each for each in SCENARIOS if any(key[0] == each for key in summary.sequences)]
    figure = new_figure(4.2 * len(scenarios) + 0.6, 3.9)
    panels = figure.subplots(1, len(scenarios), squeeze=False)[0]
    for axes, scenario in zip(panels, scenarios, strict=True):
        style_axes(
            axes,
            title=_TASKS[scenario],
            x="tasks learned",
            y="mean accuracy on those tasks" if axes is panels[0] else "",
        )
        for mode, (colour, marker) in _MODE_LOOK.items():
            lines = summary.sequences.get((scenario, mode), [])
            if not lines:
                continue
            counts = range(1, len(lines[0]["matrix"]) + 1)
            so_far = [[statistics.fmean(line["matrix"][n - 1][:n]) for line in lines] for n in counts]
            for n, values in zip(counts, so_far, strict=True):
                axes.plot([n] * 2, [100 * min(values), 100 * max(values)], color=colour, linewidth=1.2, alpha=0.4)
            means = [100 * statistics.fmean(values) for values in so_far]
            axes.plot(
                list(counts), means, color=colour, marker=marker, markersize=6, markeredgecolor="white", label=mode
            )
        axes.set_xticks(
            range(1, 1 + max(len(x[0]["matrix"]) for k, x in summary.sequences.items() if k[0] == scenario))
        )
        axes.set_ylim(0, 103)
        _percent_y(axes)
    _add_legend(figure, panels[0], columns=4)
    return figure


def _in_percent(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))
    _percent_y(axes)


def _percent_y(axes: Axes) -> None:
    from matplotlib.ticker import StrMethodFormatter

    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g} %"))


def _add_legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=8.5, labelcolor=INK, loc="outside lower center", ncols=columns
    )
