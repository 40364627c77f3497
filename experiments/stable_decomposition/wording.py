"""Turn figures into the words and table cells of the page."""

from __future__ import annotations

from collections.abc import Sequence

from common.text import NOTHING, points
from summary import Contrast, Line, Ratio, accuracy

from convpeft.evaluation import mean_and_deviation, mean_interval, wilson_interval


def percent(fraction: float) -> str:
    """A fraction as percent with one decimal."""
    return f"{100 * fraction:.1f} %"


def interval_cell(low: float | None, high: float | None) -> str:
    """The two ends, in points."""
    return NOTHING if low is None or high is None else f"[{points(low)}, {points(high)}]"


def difference_cells(found: Contrast | None) -> tuple[str, str, str, str]:
    """The difference, its interval over the seeds, over the test images, and what would have been found."""
    if found is None:
        return (NOTHING,) * 4
    seeds = found.seeds
    detectable = NOTHING if seeds.detectable is None else f"{100 * seeds.detectable:.1f}"
    return points(seeds.mean), interval_cell(seeds.low, seeds.high), interval_cell(found.low, found.high), detectable


def accuracy_cell(lines: Sequence[Line], stage: str) -> str:
    """Mean over the seeds with Student's interval; Wilson's over the images where there is one seed."""
    values, right, images = accuracy(lines, stage)
    if not values:
        return NOTHING
    if len(values) > 1:
        low, high = mean_interval(values)
        return f"{100 * mean_and_deviation(values)[0]:.1f} [{100 * max(low, 0):.1f}, {100 * min(high, 1):.1f}]"
    low, high = wilson_interval(right, images)
    return f"{100 * values[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]°"


def ratio_cell(found: Ratio | None, *, form: str = ".2f") -> str:
    """A ratio with its interval."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
