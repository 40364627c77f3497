"""Turn rows and differences into the words and table cells of the page."""

from __future__ import annotations

from common.text import NOTHING
from summary import Row

from convpeft.evaluation import SeedDifference


def percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f} %"


def share(fraction: float) -> str:
    """A fraction as whole percent."""
    return f"{100 * fraction:.0f} %"


def measured(row: Row, field: str) -> str:
    """Mean of a figure over the seeds and its 95 % t-interval."""
    if any(value is None for value in row.values(field)):
        return NOTHING
    interval = row.interval(field)
    reach = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * row.mean(field):.1f}{reach}"


def difference(found: SeedDifference) -> str:
    """A paired difference in points with its interval, marked where that holds zero."""
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.1f}"
    mark = " ○" if found.within_noise else ""
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{mark}"


def detectable(found: SeedDifference) -> str:
    """What would be found 8 times in 10."""
    return NOTHING if found.detectable is None else f"{100 * found.detectable:.1f}"
