"""The plots of the page: step time by mode, and how cost grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from measures import spread
from plan import MODES, NETS
from summary import Figures

from convpeft.reporting.canvas import BLUE, GRID, INK, ORANGE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "rank": "rank",
    "batch": "batch size (images)",
    "size": "image size (pixels)",
    "first": "first stage with adapters",
}


def draw_times(content: dict[str, Any]) -> Figure:
    """One panel a network: the step time of every mode, with its quartiles."""
    nets = [net for net in NETS if any(row["net"] == net and "ratios" in row for row in content["methods"])]
    counts = [sum(row["net"] == net and "ratios" in row for row in content["methods"]) for net in nets]
    figure = new_figure(9.0, sum(0.8 + 0.21 * count for count in counts))
    panels = figure.subplots(len(nets), 1, squeeze=False, height_ratios=[count + 3 for count in counts])[:, 0]
    for axes, net in zip(panels, nets, strict=True):
        rows = [row for row in content["methods"] if row["net"] == net and "ratios" in row]
        rows.sort(key=lambda row: Figures(row).time[1], reverse=True)
        style_axes(axes, title=NETS[net].title, x="step time, full fine-tuning in its faster layout = 1", grid=False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for place, row in enumerate(rows):
            low, middle, high = Figures(row).time
            colour = _colour(row["mode"])
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.45)
            axes.plot([middle], [place], "o", color=colour, markersize=5)
        axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [MODES[row["mode"]].title.replace("`", "") for row in rows], fontsize=7.5)
        axes.set_xlim(left=0)
        axes.set_ylim(-0.7, len(rows) - 0.3)
    return figure


def draw_growth(growth: dict[str, list[dict[str, Any]]]) -> Figure:
    """One panel for each thing that is varied: step time and saved activations."""
    shown = {what: [row for row in rows if "ratios" in row] for what, rows in growth.items()}
    shown = {what: rows for what, rows in shown.items() if rows}
    figure = new_figure(4.6 * min(2, len(shown)), 3.1 * ((len(shown) + 1) // 2))
    panels = figure.subplots((len(shown) + 1) // 2, min(2, len(shown)), squeeze=False).flat
    for axes, (what, rows) in zip(panels, shown.items(), strict=False):
        style_axes(axes, x=LABELS[what], y="ratio to full fine-tuning")
        places = list(range(len(rows)))
        quartiles = [spread(row["ratios"]) for row in rows]
        axes.fill_between(places, [low for low, _, _ in quartiles], [high for _, _, high in quartiles], alpha=0.2)
        axes.plot(places, [middle for _, middle, _ in quartiles], "o-", color=BLUE, label="step time", markersize=4)
        saved = [Figures(row).saved for row in rows]
        axes.plot(places, saved, "s--", color=ORANGE, label="saved activations", markersize=4)
        axes.set_xticks(places, [str(row[what] or "all") for row in rows])
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    for axes in list(panels):
        axes.remove()
    return figure


def _colour(mode: str) -> str:
    if MODES[mode].library == "convpeft":
        return BLUE
    return INK if MODES[mode].library == "torch" else ORANGE
