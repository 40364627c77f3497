"""The results on disk: one JSON file a task, whole after every run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import Task, entries

from convpeft.reporting import write_whole


class Store:
    """The runs of one task that are there; a file with another budget is refused."""

    def __init__(self, folder: Path, task: Task) -> None:
        self.path, self._budget = folder / f"{task.name}.json", task.budget()
        _ = self.runs()

    def runs(self) -> list[dict[str, Any]]:
        """All runs, read anew: another process may have added some."""
        content = read(self.path)
        if content and content["budget"] != self._budget:
            raise SystemExit(f"{self.path}: was made with another budget. Give another --results, or that budget.")
        return content.get("runs", [])

    def known(self) -> set[tuple[str, int]]:
        """Entry and seed of every run."""
        return {(run["entry"], run["seed"]) for run in self.runs()}

    def add(self, run: dict[str, Any], versions: dict[str, str]) -> None:
        """Put a run in its place, instead of one of the same entry and seed."""
        others = [old for old in self.runs() if (old["entry"], old["seed"]) != (run["entry"], run["seed"])]
        ordered = sorted([*others, run], key=lambda each: (place(each["entry"]), each["seed"]))
        write(self.path, {"budget": self._budget, "versions": versions, "runs": ordered})


def read(path: Path) -> dict[str, Any]:
    """What a results file holds, nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a results file whole or not at all, one line a run."""
    heads = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if not isinstance(value, list)]
    for key, rows in content.items():
        if isinstance(rows, list):
            heads.append(f"{json.dumps(key)}: {_lines(rows)}")
    write_whole(path, ("{\n" + ",\n".join(heads) + "\n}\n").encode())


def _lines(rows: Sequence[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def place(entry: str) -> int:
    """Where an entry stands in the plan; one that has left it comes last."""
    known = list(entries())
    return known.index(entry) if entry in known else len(known)
