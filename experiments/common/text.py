"""Words, numbers and tables of a page, whatever it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOTHING = "-"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def words(number: int) -> str:
    """A small number as a word."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def listed(parts: Iterable[object]) -> str:
    """A, B and C."""
    found = [str(part) for part in parts]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none"


def be(number: int) -> str:
    """The verb that goes with so many."""
    return "is" if number == 1 else "are"


def points(fraction: float) -> str:
    """A difference of two accuracies in points, with its sign."""
    return f"{100 * fraction:+.1f}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> str:
    """A Markdown table; the columns from `right` on are aligned to the right."""
    rule = ["---" if right is None or number < right else "---:" for number in range(len(headers))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headers, rule, *rows])
