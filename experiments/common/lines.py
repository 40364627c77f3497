"""Results as JSON lines on disk: the budget first, then one for what was measured, as soon as it is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
Line = dict[str, Any]


class Lines:
    """The lines that are there; a file of another budget is refused.

    Args:
        folder: Of the file; it is made where it is not there.
        name: Of the budget.
        described: Everything that makes its lines comparable.
        versions: Of what takes part.
    """

    def __init__(self, folder: Path, name: str, described: Line, versions: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
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


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
