"""What the runs of one transfer come to: arms by settings by seeds, and the differences between arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.answers import unpacked
from common.contrasts import Contrast, contrast
from convpeft.evaluation import mean_and_deviation, mean_interval

Line = Mapping[str, Any]
Setting = int | str


@dataclass(frozen=True)
class Cell:
    """One arm in one setting, over its seeds."""

    arm: str
    setting: Setting
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


class Comparison:
    """One transfer; only settings that every arm has are used, and of these only seeds that every arm has."""

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        self.name, self.content = name, content
        self.arms: list[str] = content["arms"]
        whole = {setting: self._seeds(setting) for setting in _in_order(content["runs"])}
        self.settings: list[Setting] = [setting for setting, seeds in whole.items() if seeds]
        self.seeds: list[int] = sorted(
            set[int].intersection(*(whole[setting] for setting in self.settings)) if self.settings else ()
        )
        if not self.seeds:
            raise SystemExit(f"{name}: no seed has every arm in every setting yet. Run it on.")
        self._check_draws()

    @property
    def test_images(self) -> int:
        """How many there are."""
        return self.content["runs"][0]["images"]["test"]

    @property
    def steps(self) -> set[int]:
        """How many a training has."""
        batch = self.content["train"]["batch_size"]
        return {run["epochs"] * -(-run["images"]["train"] // batch) for run in self.content["runs"]}

    @property
    def used(self) -> int:
        """How many runs the figures rest on."""
        return len(self.arms) * len(self.settings) * len(self.seeds)

    def cell(self, arm: str, setting: Setting) -> Cell:
        """One arm in one setting."""
        runs = [run for run in self.content["runs"] if (run["arm"], run["setting"]) == (arm, setting)]
        return Cell(arm, setting, tuple(sorted((r for r in runs if r["seed"] in self.seeds), key=lambda r: r["seed"])))

    def cells(self) -> list[Cell]:
        """All of them."""
        return [self.cell(arm, setting) for arm in self.arms for setting in self.settings]

    def contrast(self, arms: Sequence[str], others: Sequence[str], setting: Setting) -> Contrast:
        """The mean of some arms less the mean of others."""
        return self._contrast(self._right(arms, setting) - self._right(others, setting))

    def change(self, arms: Sequence[str], others: Sequence[str]) -> Contrast:
        """By how much that difference is larger in the first setting than in the last."""
        first, last = (self._right(arms, s) - self._right(others, s) for s in (self.settings[0], self.settings[-1]))
        return self._contrast(first - last)

    def tried(self, arm: str, setting: Setting) -> list[Line]:
        """The trials of an arm in a setting, by their rate."""
        trials = [each for each in self.content["tried"] if (each["arm"], each["setting"]) == (arm, setting)]
        return sorted(trials, key=lambda each: each["lr"])

    def at_edge(self) -> list[tuple[str, Setting, float]]:
        """Where the chosen rate is the lowest or the highest that was tried."""
        found: list[tuple[str, Setting, float]] = []
        for cell in self.cells():
            rates, rate = [each["lr"] for each in self.tried(cell.arm, cell.setting)], cell.runs[0]["lr"]
            if rates and rate in (rates[0], rates[-1]):
                found.append((cell.arm, cell.setting, rate))
        return found

    def _right(self, arms: Sequence[str], setting: Setting) -> NDArray[np.float64]:
        """The share of some arms that is right, (seeds, test images)."""
        answers = [[answers_of(run) for run in self.cell(arm, setting).runs] for arm in arms]
        return np.asarray(answers, dtype=np.float64).mean(axis=0)

    def _contrast(self, gaps: NDArray[np.float64]) -> Contrast:
        return contrast(gaps, self.content["test_groups"])

    def _seeds(self, setting: Setting) -> set[int]:
        """Those that every arm has."""
        runs = [run for run in self.content["runs"] if run["setting"] == setting]
        return set[int].intersection(*({run["seed"] for run in runs if run["arm"] == arm} for arm in self.arms))

    def _check_draws(self) -> None:
        """Refuse arms that have not seen the same images, and seeds that have."""
        for setting in self.settings:
            drawn: dict[int, set[tuple[str, str]]] = {}
            for arm in self.arms:
                for run in self.cell(arm, setting).runs:
                    drawn.setdefault(run["seed"], set()).add((run["train_digest"], run["val_digest"]))
            trains = {train for found in drawn.values() for train, _ in found}
            if any(len(found) != 1 for found in drawn.values()) or len(trains) != len(drawn):
                raise SystemExit(f"{self.name}: arms differ in their images, or seeds do not (setting {setting}).")


def answers_of(run: Line) -> NDArray[np.float64]:
    """1 where the run is right and 0 where it is not, (test images,)."""
    return unpacked(run["right"], run["images"]["test"])


def _in_order(runs: Sequence[Line]) -> list[Setting]:
    """The settings: numbers by size, names as they come."""
    found: list[Setting] = list(dict.fromkeys(run["setting"] for run in runs))
    return sorted(found, key=lambda each: each if isinstance(each, int) else 0)
