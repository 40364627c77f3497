"""What a test of a promise measures on its way, and how long it goes on: `make promises` collects the figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import settings

FIGURES, PROMISES = "figures", "promises"  # keys of a test's user properties

_current: dict[str, list[float | str]] = {}


def measured(name: str, value: float) -> None:
    """Note a figure of which the largest counts, as `measured("largest relative error", 3e-7)`."""
    kept = float(_current.get(name, ["largest", value])[1])
    _current[name] = ["largest", max(kept, float(value))]


def counted(name: str, number: int = 1) -> None:
    """Note so many more of something that is added up, as `counted("networks")`."""
    kept = float(_current.get(name, ["sum", 0])[1])
    _current[name] = ["sum", kept + number]


def times(*, full: int, reduced: int) -> int:
    """How often to repeat: `full` under `--hypothesis-profile=full`, else `reduced`."""
    return full if settings().max_examples >= 1000 else reduced


@contextmanager
def collecting() -> Iterator[dict[str, list[float | str]]]:
    """Figures of one test: as {name: [how they combine, value]}."""
    _current.clear()
    yield _current
