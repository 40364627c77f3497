"""What the lines of the results come to: one row an arm and fraction, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.lines import RESULTS, Line, read_lines
from plan import ARMS, FROZEN, FULL, LORA, MATCH, WISE
from store import select

from convpeft.evaluation import SeedDifference, mean_interval, seed_difference


def best_rate(lines: list[Line], transfer: str, arm: str, fraction: float) -> float:
    """The rate with the highest validation accuracy among an arm's trials, among equals the lowest loss."""
    group = ARMS[arm].group
    tried = [
        line for line in select(lines, "tune", transfer=transfer, fraction=fraction) if ARMS[line["arm"]].group == group
    ]
    return max(tried, key=lambda line: (line["val_accuracy"], -line["val_loss"]))["lr"]


@dataclass(frozen=True)
class Row:
    """One way to adapt with one setting, over all seeds; `chosen` says that validation chose the setting."""

    arm: str
    title: str
    setting: str
    chosen: bool
    base: float  # accuracy of the base on its source
    runs: tuple[dict[str, Any], ...]  # ordered by seed

    @property
    def name(self) -> str:
        return f"{self.title}, {self.setting}" if self.setting and not self.chosen else self.title

    def values(self, field: str) -> list[float]:
        if field == "retention":
            return [run["source_accuracy"] / self.base for run in self.runs]
        return [run[field] for run in self.runs]

    def mean(self, field: str) -> float:
        return statistics.fmean(self.values(field))

    def interval(self, field: str) -> tuple[float, float] | None:
        """Student's 95 % interval over the seeds; None for one seed."""
        values = self.values(field)
        return mean_interval(values) if len(values) > 1 else None

    def minus(self, other: Row, field: str) -> SeedDifference:
        """The difference to another row, seed by seed."""
        return seed_difference(self.values(field), other.values(field))


class Summary:
    """The results, read; only transfers and fractions whose arms all have every seed are used."""

    def __init__(self, folder: Path) -> None:
        self.lines = read_lines(folder / RESULTS)
        first = self.lines[0]
        self.name: str = first["name"]
        self.budget: dict[str, Any] = first["budget"]
        self.versions: dict[str, str] = first["versions"]
        self.seeds: list[int] = self.budget["seeds"]
        self.bases = {line["transfer"]: line for line in select(self.lines, "base")}
        planned = [each["name"] for each in self.budget["transfers"]]
        self.transfers = {each["name"]: each for each in self.budget["transfers"] if self.fractions_of(each["name"])}
        self.missing = [
            (name, fraction)
            for name in planned
            for fraction in sorted(map(float, self.budget["epochs"]))
            if fraction not in self.fractions_of(name)
        ]

    def fractions_of(self, transfer: str) -> list[float]:
        """The fractions of which nothing is missing, smallest first."""
        fractions = sorted(map(float, self.budget["epochs"]))
        arms, seeds = set(self.budget["arms"]), len(self.seeds)
        need = seeds * (len(arms) - 1 + self.budget["trials"])
        return [x for x in fractions if len(select(self.lines, "run", transfer=transfer, fraction=x)) >= need]

    def rows(self, transfer: str, fraction: float) -> list[Row]:
        """Every arm at its chosen setting, then the other rates of full fine-tuning, then WiSE-FT."""
        found = [self._row(transfer, fraction, arm, chosen=True) for arm in self.budget["arms"]]
        best = best_rate(self.lines, transfer, FULL, fraction)
        found += [
            self._row(transfer, fraction, FULL, lr=lr, chosen=False)
            for lr in self.rates(transfer, FULL, fraction)
            if lr != best
        ]
        whole = next(row for row in found if row.arm == FULL and row.chosen)
        between = [self._between(whole, place) for place in range(len(whole.runs[0]["wise"]))]
        top = max(between, key=lambda row: (row.mean("val_accuracy"), -row.runs[0]["coefficient"]))
        return found + [self._chosen(row) if row is top else row for row in between]

    def row(self, transfer: str, fraction: float, arm: str) -> Row:
        """An arm at the setting that validation chose."""
        return next(row for row in self.rows(transfer, fraction) if row.arm == arm and row.chosen)

    def rates(self, transfer: str, arm: str, fraction: float) -> list[float]:
        """The rates tried for an arm, ascending."""
        group = ARMS[arm].group
        tried = select(self.lines, "tune", transfer=transfer, fraction=fraction)
        return sorted({line["lr"] for line in tried if ARMS[line["arm"]].group == group})

    def matched(self, transfer: str, fraction: float) -> list[tuple[Row, Row | None]]:
        """Of each way to train weights, the setting nearest to LoRA's validation accuracy, None where none is near."""
        lora = self.row(transfer, fraction, LORA)
        level = lora.mean("val_accuracy")
        found: list[tuple[Row, Row | None]] = []
        for arm in (FULL, FROZEN, WISE, "l2-sp", "lwf"):
            rows = [row for row in self.rows(transfer, fraction) if row.arm == arm]
            if not rows:
                continue
            nearest = min(rows, key=lambda row: abs(row.mean("val_accuracy") - level))
            near = abs(nearest.mean("val_accuracy") - level) <= MATCH
            found.append((nearest, nearest if near else None))
        return found

    @cached_property
    def sequences(self) -> dict[tuple[str, str], list[Line]]:
        """The sequence runs by scenario and mode, where every seed is there."""
        found: dict[tuple[str, str], list[Line]] = {}
        for line in select(self.lines, "sequence"):
            found.setdefault((line["scenario"], line["mode"]), []).append(line)
        return {key: lines for key, lines in found.items() if len(lines) == len(self.seeds)}

    def _row(self, transfer: str, fraction: float, arm: str, *, lr: float | None = None, chosen: bool) -> Row:
        rate = best_rate(self.lines, transfer, arm, fraction) if lr is None else lr
        runs = select(self.lines, "run", transfer=transfer, fraction=fraction, arm=arm, lr=rate)
        base = self.bases[transfer]["source_accuracy"]
        return Row(arm, ARMS[arm].title, f"rate {rate:g}", chosen, base, _by_seed(runs))

    def _between(self, whole: Row, place: int) -> Row:
        runs = [run | run["wise"][place] | {"probe_accuracy": None} for run in whole.runs]
        return Row(WISE, "WiSE-FT", f"{runs[0]['coefficient']:g}", False, whole.base, tuple(runs))

    def _chosen(self, row: Row) -> Row:
        return Row(row.arm, row.title, row.setting, True, row.base, row.runs)


def _by_seed(runs: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(sorted(runs, key=lambda run: run["seed"]))
