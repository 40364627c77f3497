"""The results on disk: one JSON line for what was measured, added as soon as it is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
KINDS = ("budget", "base", "tune", "run", "sequence")
_FIELDS = ("transfer", "scenario", "mode", "arm", "fraction", "seed", "lr")

Line = dict[str, Any]


class Store:
    """The lines that are there; a file of another budget is refused."""

    def __init__(self, folder: Path, name: str, described: Line, versions: dict[str, str]) -> None:
        self.path = folder / RESULTS
        self.lines = read_lines(self.path)
        plain = json.loads(json.dumps(described))
        if not self.lines:
            self.add({"kind": "budget", "name": name, "budget": plain, "versions": versions})
        elif self.lines[0]["budget"] != plain:
            raise SystemExit(f"{self.path}: was made with another budget. Give another --results, or that budget.")

    def add(self, line: Line) -> None:
        """Write one more line."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

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


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def select(lines: list[Line], kind: str, **wanted: Any) -> list[Line]:
    """The lines of a kind with these values."""
    return [
        line for line in lines if line["kind"] == kind and all(line.get(key) == value for key, value in wanted.items())
    ]
