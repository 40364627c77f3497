"""Turn estimates into the words and table cells of the page."""

from __future__ import annotations

from common.text import NOTHING, words
from summary import Estimate, Row

from convpeft.reporting import format_percent


def percent(fraction: float) -> str:
    """A fraction as percent with two decimals."""
    return format_percent(fraction, digits=2)


def points(fraction: float) -> str:
    """A difference of two accuracies in points, with its sign."""
    return f"{100 * fraction:+.2f}"


def sentence(name: str) -> str:
    """A title as it begins a sentence."""
    return name[0].upper() + name[1:]


def inside(name: str) -> str:
    """A title as it stands inside a sentence."""
    return name if name.startswith("LoRA") else name[0].lower() + name[1:]


def mean_cell(found: Estimate) -> str:
    """Mean, deviation and interval of an accuracy."""
    spread = f"± {100 * found.deviation:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"
    return f"{percent(found.mean)} {spread}"


def difference_cell(found: Estimate) -> str:
    """A paired difference with its interval, marked where that holds zero."""
    mark = " ○" if found.within_noise else ""
    return f"{points(found.mean)} [{points(found.low)}, {points(found.high)}]{mark}"


def compare(a: Row, b: Row) -> str:
    """Say in one sentence which of two is more accurate, or that these seeds cannot tell."""
    found = a.minus(b)
    interval = f"95 % interval {points(found.low)} to {points(found.high)}"
    size = f"{100 * abs(found.mean):.2f} points"
    if found.within_noise:
        return (
            f"{sentence(a.name)} and {inside(b.name)} differ by {size} ({interval}), which is within the noise of "
            f"{words(found.count)} seeds; about {100 * found.detectable:.2f} points would have been found."
        )
    word = "more" if found.mean > 0 else "less"
    return f"{sentence(a.name)} is {size} {word} accurate than {inside(b.name)} ({interval})."


def share_of_gap(row: Row, head: Row, full: Row) -> str:
    """How much of what full fine-tuning gains over the head alone a row gains."""
    gap = full.minus(head).mean
    return NOTHING if gap <= 0 else f"{100 * row.minus(head).mean / gap:.0f} %"
