"""What the rows of a comparison come to: one line an arm and setting, compared with the baseline on equal terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convpeft.comparing.grid import Grid
from convpeft.evaluation import (
    describe_difference,
    describe_seed_difference,
    detectable_over_pairs,
    mean_and_deviation,
    mean_interval,
    paired_difference,
    seed_difference,
)


@dataclass(frozen=True)
class Against:
    """An arm beside the baseline: difference, its 95 % interval, what would have been found, and a sentence."""

    mean: float
    low: float | None
    high: float | None
    detectable: float | None
    within_noise: bool
    sentence: str


@dataclass(frozen=True)
class Line:
    """One arm in one setting over its seeds. Accuracies are fractions, times seconds, sizes bytes."""

    arm: str
    setting: str
    rows: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    missing: int
    against: Against | None

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies, one a seed."""
        return [row["test"]["accuracy"] for row in self.rows]

    @property
    def mean(self) -> float:
        """Their mean."""
        return mean_and_deviation(self.accuracies)[0]

    @property
    def deviation(self) -> float | None:
        """Their deviation; None for one seed."""
        return mean_and_deviation(self.accuracies)[1]

    @property
    def interval(self) -> tuple[float, float]:
        """Student's over the seeds, within 0..1; Wilson's over the test images of a single one."""
        if len(self.rows) == 1:
            low, high = self.rows[0]["test"]["interval"]
            return low, high
        low, high = mean_interval(self.accuracies)
        return max(0.0, low), min(1.0, high)

    def middle(self, *keys: str) -> float:
        """The median over the seeds of a figure."""
        return median(_at(row, keys) for row in self.rows)

    @property
    def rates(self) -> str:
        """The learning rates that were used."""
        return ", ".join(f"{rate:.3g}" for rate in sorted({row["lr"] for row in self.rows if row["lr"]}))


def summarise(grid: Grid, rows: Mapping[str, dict[str, Any]]) -> list[Line]:
    """One line an arm and setting, in the order of the grid."""
    places: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for cell in grid.cells:
        setting = ", ".join(f"{key} {value}" for key, value in cell.setting.items())
        places.setdefault((cell.arm, setting), []).append(rows.get(cell.key))
    done = {place: _done(found) for place, found in places.items()}
    return [
        Line(
            arm,
            setting,
            tuple(done[arm, setting]),
            tuple(row for row in found if row is not None and row["status"] != "done"),
            sum(row is None for row in found),
            None if arm == grid.baseline else _against(arm, done[arm, setting], grid, done[grid.baseline, setting]),
        )
        for (arm, setting), found in places.items()
    ]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points (cost, accuracy) no other one beats: none is as cheap and more accurate, or cheaper and as accurate.

    >>> front([(1, 0.5), (2, 0.4), (3, 0.9)])
    [True, False, True]
    """
    return [
        not any((c <= cost and a > accuracy) or (c < cost and a >= accuracy) for c, a in points)
        for cost, accuracy in points
    ]


def _done(found: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [row for row in found if row is not None and row["status"] == "done"]


def _against(arm: str, own: Sequence[dict[str, Any]], grid: Grid, others: Sequence[dict[str, Any]]) -> Against | None:
    """Compare the seeds that both have: over seeds where there are several, over test images where there is one."""
    theirs = {row["seed"]: row for row in others}
    pairs = [(row, theirs[row["seed"]]) for row in own if row["seed"] in theirs]
    if not pairs:
        return None
    if len(pairs) > 1:
        found = seed_difference(*([row["test"]["accuracy"] for row in side] for side in zip(*pairs, strict=True)))
        sentence = describe_seed_difference(found, a=arm, b=grid.baseline)
        return Against(found.mean, found.low, found.high, found.detectable, found.within_noise, sentence)
    (a, b), n = pairs[0], pairs[0][0]["test"]["n"]
    if a["data_digests"]["test"] != b["data_digests"]["test"]:
        gap = a["test"]["accuracy"] - b["test"]["accuracy"]
        return Against(gap, None, None, None, True, f"{arm} and {grid.baseline} were tested on different images.")
    paired = paired_difference(_right(a), _right(b), seed=0)
    detectable = detectable_over_pairs(n, discordance=(paired.only_a + paired.only_b) / n)
    sentence = describe_difference(paired, a=arm, b=grid.baseline)
    return Against(paired.delta, paired.low, paired.high, detectable, paired.within_noise, sentence)


def _right(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    packed = np.frombuffer(bytes.fromhex(row["test"]["right"]), dtype=np.uint8)
    return np.unpackbits(packed)[: row["test"]["n"]].astype(np.bool_)


def _at(row: Mapping[str, Any], keys: Sequence[str]) -> float:
    found: Any = row
    for key in keys:
        found = found[key]
    return float(found)
