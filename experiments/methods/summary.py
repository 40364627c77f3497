"""The results read and put together: one row an entry, over its seeds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plan import BASELINE, MARGIN, SEEDS
from store import read


@dataclass(frozen=True)
class Row:
    """One entry on one task. `cost` is empty until it is measured."""

    entry: str
    runs: tuple[dict[str, Any], ...]  # ordered by seed
    cost: dict[str, Any]

    def values(self, field: str) -> list[float]:
        return [run[field] for run in self.runs]

    def mean(self, field: str) -> float:
        return statistics.fmean(self.values(field))

    @property
    def trainable(self) -> int:
        return self.runs[0]["trainable"]

    @property
    def spread(self) -> float:
        """The test accuracy of the best seed less that of the worst."""
        return max(self.values("test_accuracy")) - min(self.values("test_accuracy"))


class Outcome:
    """One task; only entries with every seed are rows."""

    def __init__(self, folder: Path, name: str) -> None:
        content = read(folder / f"{name}.json")
        self.budget: dict[str, Any] = content["budget"]
        self.versions: dict[str, str] = content["versions"]
        costs = {row["entry"]: row for row in read(folder / "cost.json").get(name, [])}
        runs: dict[str, list[dict[str, Any]]] = {}
        for run in content["runs"]:
            runs.setdefault(run["entry"], []).append(run)
        self.rows = tuple(
            Row(entry, tuple(sorted(found, key=lambda run: run["seed"])), costs.get(entry, {}))
            for entry, found in runs.items()
            if {run["seed"] for run in found} >= set(SEEDS)
        )

    @cached_property
    def by_size(self) -> list[Row]:
        """The rows by trained parameters."""
        return sorted(self.rows, key=lambda row: (row.trainable, row.entry))

    @cached_property
    def baseline(self) -> Row:
        return next(row for row in self.rows if row.entry == BASELINE)

    def gain(self, row: Row) -> float:
        """How far the training loss lies below the baseline's, as a share of that."""
        return 1 - row.mean("train_loss") / self.baseline.mean("train_loss")

    def reaches(self, row: Row) -> bool:
        """Whether the margin is kept."""
        return self.gain(row) >= MARGIN

    @property
    def missing(self) -> list[Row]:
        """What was trained and does not reach the margin; the baseline cannot."""
        return [row for row in self.by_size if row.entry != BASELINE and not self.reaches(row)]
