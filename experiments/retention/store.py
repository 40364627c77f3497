"""The results on disk: lines by what they say, and in the order of the plan."""

from __future__ import annotations

import json
from typing import Any

from common.lines import Line, Lines

KINDS = ("budget", "base", "tune", "run", "sequence")
_FIELDS = ("transfer", "scenario", "mode", "arm", "fraction", "seed", "lr")


class Store(Lines):
    """The lines that are there."""

    def of(self, kind: str, **wanted: Any) -> list[Line]:
        """The lines of a kind with these values."""
        return select(self.lines, kind, **wanted)

    def sort(self, places: dict[str, int]) -> None:
        """Write the lines in the order of the plan, whatever the order in which they came."""

        def place(line: Line) -> tuple[Any, ...]:
            found = [line.get(field, -1) for field in _FIELDS]
            return (KINDS.index(line["kind"]), *(places.get(x, 0) if isinstance(x, str) else x for x in found))

        self.lines.sort(key=place)
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")


def select(lines: list[Line], kind: str, **wanted: Any) -> list[Line]:
    """The lines of a kind with these values."""
    return [
        line for line in lines if line["kind"] == kind and all(line.get(key) == value for key, value in wanted.items())
    ]
