"""How the page writes numbers and tables."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; numbers stand at the right."""
    marks = ["---", *["---:"] * (len(headers) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headers, marks, *rows))


def with_spread(values: tuple[float, float, float] | None) -> str:
    """Median and, in brackets, the quartiles."""
    return NOTHING if values is None else f"{values[1]:.2f} [{values[0]:.2f}, {values[2]:.2f}]"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 10e6 else f"{size / 1e6:,.1f} MB"


def billions(operations: int) -> str:
    return f"{operations / 1e9:,.1f}" if operations >= 10e9 else f"{operations / 1e9:.2f}"


def joined(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def rate(values: Sequence[float]) -> str:
    """The median of images a second."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:,.0f}"
