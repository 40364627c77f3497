"""Each arm's difference to one of them, as points with both intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from common.comparison import Comparison
from convpeft.reporting.canvas import GRID, INK, ORANGE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def differences(found: Comparison, against: str, titles: Sequence[str], *, colour: Callable[[str], str]) -> Figure:
    """A panel a setting, a row an arm: thick over the draws of images, thin over the test images.

    Args:
        found: With two seeds or more.
        against: The arm at zero.
        titles: Of the panels, one a setting.
        colour: Of an arm, where neither interval holds zero; others are grey.
    """
    arms = [arm for arm in found.arms if arm != against]
    figure = new_figure(10.5, 1.3 + 0.36 * len(arms))
    panels: Sequence[Axes] = figure.subplots(1, len(found.settings), sharex=True, sharey=True, squeeze=False)[0]
    for axes, setting, title in zip(panels, found.settings, titles, strict=True):
        style_axes(axes, title=title, x=f"points more accurate than {against}", grid=False)
        axes.axvline(0, color=ORANGE, linewidth=1.2)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for place, arm in enumerate(arms):
            gap = found.contrast([arm], [against], setting)
            assert gap.seeds.low is not None and gap.seeds.high is not None
            shade = colour(arm) if gap.sign else SOFT
            bar = {"color": shade, "solid_capstyle": "butt"}  # a round end would reach over zero
            axes.plot([100 * gap.low, 100 * gap.high], [place + 0.17] * 2, linewidth=1, **bar)
            axes.plot([100 * gap.seeds.low, 100 * gap.seeds.high], [place] * 2, linewidth=2.6, **bar)
            axes.plot([100 * gap.seeds.mean], [place], "o", color=shade, markersize=6, markeredgecolor="white")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.4g}" if value else "0")
    panels[0].set_yticks(range(len(arms)), arms, color=INK)
    panels[0].invert_yaxis()
    return figure
