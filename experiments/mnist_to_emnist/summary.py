"""What the lines of the results come to: means, intervals, paired differences, and which classes are mistaken."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convpeft.evaluation import mean_and_deviation

# Student's t: the 97.5 % and the 80 % quantile by degrees of freedom.
_T = {
    1: (12.7062, 1.3764),
    2: (4.3027, 1.0607),
    3: (3.1824, 0.9785),
    4: (2.7764, 0.9410),
    5: (2.5706, 0.9195),
    6: (2.4469, 0.9057),
    7: (2.3646, 0.8960),
    8: (2.3060, 0.8889),
    9: (2.2622, 0.8834),
}
# Groups that are one shape to the eye; EMNIST's letters hold both cases. Named before any mistake was seen.
LOOKALIKES = ("0O", "1IL", "2Z", "5S", "9GQ")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its 95 % t-interval, and what difference from zero would be found 8 times in 10 (about)."""

    mean: float
    deviation: float
    low: float
    high: float
    detectable: float
    count: int

    @property
    def within_noise(self) -> bool:
        """Whether zero is inside the interval; for differences."""
        return self.low <= 0 <= self.high


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation and t-interval of at least two values."""
    mean, deviation = mean_and_deviation(values)
    assert deviation is not None, "one seed has no interval"
    level, power = _T[len(values) - 1]
    error = deviation / math.sqrt(len(values))
    return Estimate(mean, deviation, mean - level * error, mean + level * error, (level + power) * error, len(values))


@dataclass(frozen=True)
class Row:
    """One arm at one rank on one target, over all seeds."""

    arm: str
    title: str
    rank: int | None
    runs: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        return self.title if self.rank is None else f"{self.title}, rank {self.rank}"

    def values(self, field: str) -> list[float]:
        return [run[field] for run in self.runs]

    def of(self, field: str) -> Estimate:
        return estimate(self.values(field))

    def minus(self, other: Row, field: str = "test_accuracy") -> Estimate:
        """The difference to another row, seed by seed."""
        return estimate([a - b for a, b in zip(self.values(field), other.values(field), strict=True)])

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Images by true and predicted class, summed over the seeds."""
        return np.sum([run["confusion"] for run in self.runs], axis=0)


class Summary:
    """The results file, read; only seeds that every arm, rank and target has are used."""

    def __init__(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        plan = next(line for line in lines if line["kind"] == "grid")
        self.grid: dict[str, Any] = plan["grid"]
        self.versions: dict[str, str] = plan["versions"]
        self.notes: list[str] = plan["notes"]  # what a reader should know of how this very run went
        self.base: dict[str, Any] = next(line for line in lines if line["kind"] == "base")
        self.targets: dict[str, dict[str, Any]] = {x["target"]: x for x in lines if x["kind"] == "target"}
        self.trials = [line for line in lines if line["kind"] == "tune"]
        runs = [line for line in lines if line["kind"] == "run"]
        self.seeds = sorted(seed for seed in self.grid["seeds"] if self._is_whole(runs, seed))
        self.runs = [run for run in runs if run["seed"] in self.seeds]

    def kinds(self) -> list[tuple[str, str, int | None]]:
        """Name, title and rank of every row, in the order of the grid."""
        return [
            (arm["name"], arm["title"], rank)
            for arm in self.grid["arms"]
            for rank in (self.grid["ranks"] if arm.get("ranked") else [None])
        ]

    def rows(self, target: str) -> list[Row]:
        return [Row(name, title, rank, tuple(self._runs(target, name, rank))) for name, title, rank in self.kinds()]

    def chosen(self, target: str) -> Row:
        """The LoRA arm and rank with the highest mean accuracy on validation; the test split has no say."""
        ranked = [row for row in self.rows(target) if row.rank is not None]
        return max(ranked, key=lambda row: math.fsum(row.values("val_accuracy")))

    def rates(self, target: str, arm: str) -> tuple[list[float], float]:
        """The learning rates tried for an arm, ascending, and the chosen one."""
        tried = [line for line in self.trials if (line["target"], line["arm"]) == (target, arm)]
        best = max(tried, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
        return sorted(line["lr"] for line in tried), best["lr"]

    def _runs(self, target: str, arm: str, rank: int | None) -> list[dict[str, Any]]:
        found = [run for run in self.runs if (run["target"], run["arm"], run["rank"]) == (target, arm, rank)]
        return sorted(found, key=lambda run: run["seed"])

    def _is_whole(self, runs: list[dict[str, Any]], seed: int) -> bool:
        return sum(run["seed"] == seed for run in runs) == len(self.kinds()) * len(self.grid["targets"])


def groups_in(classes: Sequence[str]) -> list[str]:
    """The look-alike groups of which at least two classes are there."""
    found = ["".join(each for each in group if each in classes) for group in LOOKALIKES]
    return [group for group in found if len(group) > 1]


def lookalike_mistakes(confusion: NDArray[np.int64], classes: Sequence[str], groups: Sequence[str]) -> int:
    """Mistakes inside these groups, in either direction."""
    place = {name: index for index, name in enumerate(classes)}
    return sum(int(confusion[place[a], place[b]]) for group in groups for a in group for b in group if a != b)


def lookalike_pairs(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair of classes inside a look-alike group."""
    return [pair for group in groups_in(classes) for pair in itertools.combinations(group, 2)]


def crossing_mistakes(confusion: NDArray[np.int64], classes: Sequence[str]) -> int:
    """Digits that were called letters, and letters that were called digits."""
    digit = np.array([name.isdigit() for name in classes])
    return int(confusion[digit][:, ~digit].sum() + confusion[~digit][:, digit].sum())
