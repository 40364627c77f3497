"""The results on disk: one JSON line for what was measured, added as soon as it is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import RATES, RESTORING, TUNE, budget_of, cases, key_of

RESULTS = "results.jsonl"
Line = dict[str, Any]


class Store:
    """The lines that are there, the budget first; a file of another budget is refused."""

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

    def missing(self) -> list[Line]:
        """The cases of the plan that are not measured yet."""
        known = {key_of(line) for line in measured(self.lines)}
        return [case for case in cases(budget_of(self.lines[0]["budget"])) if key_of(case) not in known]


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def measured(lines: Sequence[Line]) -> list[Line]:
    """The lines that belong to a case."""
    return [line for line in lines if line["kind"] not in ("budget", "input")]


def chosen_rates(lines: Sequence[Line]) -> dict[str, float]:
    """Of each way to restore, the rate with the highest validation accuracy, the mean over what was restored."""
    tried = [each for line in lines if line["kind"] == TUNE for each in line["tried"]]

    def worth(arm: str, rate: float) -> tuple[float, float]:
        own = [each for each in tried if (each["arm"], each["rate"]) == (arm, rate)]
        losses = [math.inf if each["val_loss"] is None else each["val_loss"] for each in own]
        return sum(each["val_accuracy"] for each in own), -sum(losses)

    return {arm: max(RATES, key=lambda rate, arm=arm: worth(arm, rate)) for arm in RESTORING} if tried else {}
