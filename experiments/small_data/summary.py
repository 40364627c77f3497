"""What the runs of one transfer come to: means over seeds, and differences over seeds and over test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convpeft.evaluation import SeedDifference, mean_and_deviation, mean_interval, seed_difference

HEAD, WHOLE, FROZEN = "probe", "full", "full, norms frozen"
_NORMAL = 1.959964  # 97.5 % quantile
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One arm with so many images a class, over its seeds."""

    arm: str
    per_class: int
    runs: tuple[Line, ...]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies, one a seed."""
        return [run["test_accuracy"] for run in self.runs]

    @property
    def mean(self) -> float:
        """Their mean."""
        return mean_and_deviation(self.accuracies)[0]

    @property
    def deviation(self) -> float | None:
        """Their deviation."""
        return mean_and_deviation(self.accuracies)[1]

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval over the seeds, within 0..1."""
        low, high = mean_interval(self.accuracies)
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Contrast:
    """How much more accurate one side is than the other, on the same draws of images and the same test images.

    Attributes:
        seeds: Over the draws: what other training images would have given, with this test split.
        low: Lower end of the 95 % interval over the test images, whole patients where they are known, with these draws.
        high: Upper end of it.
    """

    seeds: SeedDifference
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals leave zero out on the same side, else 0: within noise."""
        if self.seeds.low is None or self.seeds.high is None:
            return 0
        return (self.seeds.low > 0 and self.low > 0) - (self.seeds.high < 0 and self.high < 0)


class Summary:
    """One transfer; only sizes that every arm has are used, and of these only seeds that every arm has."""

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        self.name, self.content = name, content
        self.arms: list[str] = content["arms"]
        whole = {size: self._seeds(size) for size in sorted({run["per_class"] for run in content["runs"]})}
        self.sizes = [size for size, seeds in whole.items() if seeds]
        self.seeds: list[int] = sorted(
            set[int].intersection(*(whole[size] for size in self.sizes)) if self.sizes else ()
        )
        if not self.seeds:
            raise SystemExit(f"{name}: no seed has every arm at every size yet. Run it on.")
        self._check_draws()

    @property
    def adapters(self) -> list[str]:
        """The arms that are neither the head alone nor the whole network."""
        return [arm for arm in self.arms if arm not in (HEAD, WHOLE, FROZEN)]

    @property
    def test_images(self) -> int:
        """How many there are."""
        return self.content["runs"][0]["images"]["test"]

    def cell(self, arm: str, size: int) -> Cell:
        """One arm at one size."""
        runs = [run for run in self.content["runs"] if (run["arm"], run["per_class"]) == (arm, size)]
        return Cell(arm, size, tuple(sorted((r for r in runs if r["seed"] in self.seeds), key=lambda r: r["seed"])))

    def contrast(self, arms: Sequence[str], others: Sequence[str], size: int) -> Contrast:
        """The mean of some arms less the mean of others."""
        return self._contrast(self._right(arms, size) - self._right(others, size))

    def change(self, arms: Sequence[str], others: Sequence[str]) -> Contrast:
        """By how much that difference is larger with the fewest images than with the most."""
        few, many = (self._right(arms, size) - self._right(others, size) for size in (self.sizes[0], self.sizes[-1]))
        return self._contrast(few - many)

    def tried(self, arm: str, size: int) -> list[Line]:
        """The trials of an arm at a size, by their rate."""
        trials = [each for each in self.content["tried"] if (each["arm"], each["per_class"]) == (arm, size)]
        return sorted(trials, key=lambda each: each["lr"])

    def at_edge(self) -> list[tuple[str, int, float]]:
        """Where the chosen rate is the lowest or the highest that was tried."""
        found: list[tuple[str, int, float]] = []
        for arm in self.arms:
            for size in self.sizes:
                rates = [each["lr"] for each in self.tried(arm, size)]
                rate = self.cell(arm, size).runs[0]["lr"]
                if rates and rate in (rates[0], rates[-1]):
                    found.append((arm, size, rate))
        return found

    def _right(self, arms: Sequence[str], size: int) -> NDArray[np.float64]:
        """The share of some arms that is right, (seeds, test images)."""
        answers = [[_answers(run) for run in self.cell(arm, size).runs] for arm in arms]
        return np.asarray(answers, dtype=np.float64).mean(axis=0)

    def _contrast(self, gaps: NDArray[np.float64]) -> Contrast:
        over_seeds = gaps.mean(axis=1).tolist()
        mean, reach = float(gaps.mean()), _NORMAL * clustered_error(gaps.mean(axis=0), self.content["test_groups"])
        return Contrast(seed_difference(over_seeds, [0.0] * len(over_seeds)), mean - reach, mean + reach)

    def _seeds(self, size: int) -> set[int]:
        """Those that every arm has."""
        runs = [run for run in self.content["runs"] if run["per_class"] == size]
        return set[int].intersection(*({run["seed"] for run in runs if run["arm"] == arm} for arm in self.arms))

    def _check_draws(self) -> None:
        """Refuse arms that have not seen the same images, and seeds that have."""
        for size in self.sizes:
            drawn: dict[int, set[tuple[str, str]]] = {}
            for arm in self.arms:
                for run in self.cell(arm, size).runs:
                    drawn.setdefault(run["seed"], set()).add((run["train_digest"], run["val_digest"]))
            trains = {train for found in drawn.values() for train, _ in found}
            if any(len(found) != 1 for found in drawn.values()) or len(trains) != len(drawn):
                raise SystemExit(f"{self.name}: arms differ in their images, or seeds do not ({size} a class).")


def clustered_error(values: NDArray[np.float64], groups: Sequence[int] | None) -> float:
    """The standard error of a mean of images, of which those of a group are no independent ones.

    sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n, with each image its own group where there are none.

    Args:
        values: One number an image, (n,).
        groups: A number of its group for each image, or None.
    """
    numbers = np.arange(len(values)) if groups is None else np.asarray(groups)
    _, places = np.unique(numbers, return_inverse=True)
    sums = np.bincount(places, weights=values - values.mean())
    count = len(sums)
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)


def _answers(run: Line) -> NDArray[np.float64]:
    packed = np.frombuffer(bytes.fromhex(run["right"]), dtype=np.uint8)
    return np.unpackbits(packed)[: run["images"]["test"]].astype(np.float64)
