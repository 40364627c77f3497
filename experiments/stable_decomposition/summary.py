"""What the lines of the results come to: cells over their seeds, and differences over seeds and over test images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.answers import unpacked
from common.lines import RESULTS, Line, read_lines
from numpy.typing import NDArray
from plan import EQUAL, METHODS, SEARCH, TUNE, Budget, budget_of, cases, key_of
from store import chosen_rates, measured

from convpeft.evaluation import SeedDifference, bootstrap_interval, mean_interval, seed_difference

_RESAMPLES = 2000
Stage = str  # "before", "thin", or a way to restore
Pair = tuple[tuple[Line, Stage], tuple[Line, Stage]]


@dataclass(frozen=True)
class Contrast:
    """How much more accurate one side is than the other, on the same images.

    Attributes:
        seeds: Over the seeds: other images to choose and restore with, other starts of the decompositions.
        low: Lower end of the 95 % interval over the test images; each seed has test images of its own.
        high: Upper end of it.
    """

    seeds: SeedDifference
    low: float
    high: float

    def above(self, limit: float = 0.0) -> int:
        """1 or -1 where both intervals are on one side of a limit, else 0; one seed has the images' interval alone."""
        low = self.low if self.seeds.low is None else min(self.low, self.seeds.low)
        high = self.high if self.seeds.high is None else max(self.high, self.seeds.high)
        return (low > limit) - (high < limit)

    @property
    def mean(self) -> float:
        """The difference."""
        return self.seeds.mean


@dataclass(frozen=True)
class Ratio:
    """A ratio as a geometric mean, with Student's 95 % interval of its logarithm over the seeds, if there are two."""

    mean: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """-1 for surely below one, 1 for surely above, else 0."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 1) - (self.high < 1)


class Summary:
    """The results, read."""

    def __init__(self, folder: Path) -> None:
        self.lines = read_lines(folder / RESULTS)
        if not self.lines:
            raise SystemExit(f"{folder / RESULTS}: holds no results yet. Run some first.")
        first = self.lines[0]
        self.name: str = first["name"]
        self.versions: dict[str, str] = first["versions"]
        self.budget: Budget = budget_of(first["budget"])
        self.inputs = [line for line in self.lines if line["kind"] == "input"]
        self.rates = chosen_rates(self.lines)
        known = {key_of(line) for line in measured(self.lines)}
        self.planned = cases(self.budget)
        self.missing = [case for case in self.planned if key_of(case) not in known]

    def of(self, kind: str, **wanted: Any) -> list[Line]:
        """The lines of a kind with these values, by seed."""
        found = [x for x in self.lines if x["kind"] == kind and all(x.get(k) == v for k, v in wanted.items())]
        return sorted(found, key=lambda line: line["seed"])

    def networks(self, kind: str) -> list[str]:
        """Those that have lines of a kind, as they are planned."""
        parts = self.budget.sweeps if kind == SEARCH else self.budget.levels
        return [network for network in dict.fromkeys(x.network for x in parts) if self.of(kind, network=network)]

    def methods(self, network: str) -> list[str]:
        """The methods of a network that are searched."""
        methods = {method for sweep in self.budget.sweeps if sweep.network == network for method in sweep.methods}
        return [method for method in METHODS if method in methods and self.of(SEARCH, network=network, method=method)]

    def settings(self, kind: str, network: str) -> list[float]:
        """Shares or drops that are there, ascending."""
        return sorted({line["setting"] for line in self.of(kind, network=network)})

    def pairs(self, kind: str, one: str, other: str, **wanted: Any) -> list[tuple[Line, Line]]:
        """Lines of two methods that differ in nothing else."""
        others = {(line["network"], line["setting"], line["seed"]): line for line in self.of(kind, method=other)}
        found = [
            (line, others.get((line["network"], line["setting"], line["seed"]))) for line in self.of(kind, method=one)
        ]
        return [(a, b) for a, b in found if b is not None and all(a.get(key) == value for key, value in wanted.items())]

    def restored_lines(self, network: str) -> list[Line]:
        """Every line of a network that was restored by the rates that were chosen."""
        return [line for kind in (EQUAL, SEARCH) for line in self.of(kind, network=network) if line.get("restored")]

    def tuned(self, method: str) -> Line | None:
        """The line in which the rates were tried."""
        return next(iter(self.of(TUNE, method=method)), None)


def answers(line: Line, stage: Stage) -> NDArray[np.float64] | None:
    """Which test images are right at a stage, None where that was not measured or broke."""
    found = line[stage] if stage in line else restored(line, stage)
    return None if found is None or "right" not in found else right_of(found)


def restored(line: Line, arm: str) -> Line | None:
    """What a way to restore came to."""
    return next((each for each in line.get("restored", ()) if each["arm"] == arm), None)


def right_of(found: Line) -> NDArray[np.float64]:
    """A number for each image, one for right."""
    return unpacked(found["right"], found["images"])


def contrast(pairs: Sequence[Pair]) -> Contrast | None:
    """The mean difference over pairs of networks: those with one seed are averaged first, image by image."""
    by_seed: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
    for (line, stage), (other, stage_) in pairs:
        a, b = answers(line, stage), answers(other, stage_)
        if a is not None and b is not None:
            by_seed.setdefault((line["network"], line["seed"]), []).append(a - b)
    if not by_seed:
        return None
    images = {key: np.mean(gaps, axis=0) for key, gaps in by_seed.items()}
    seeds = sorted({seed for _, seed in images})
    over = [statistics.fmean(float(gap.mean()) for (_, own), gap in images.items() if own == seed) for seed in seeds]
    low, high = bootstrap_interval(np.concatenate(list(images.values())), seed=0, resamples=_RESAMPLES)
    return Contrast(seed_difference(over, [0.0] * len(over)), low, high)


def over_rates(line: Line, other: Line, arm: str) -> Contrast | None:
    """The mean difference over all rates that were tried; None where none of them ended well in both."""
    gaps: list[NDArray[np.float64]] = []
    for one, its in zip(line["tried"], other["tried"], strict=True):
        if one["arm"] == arm and "right" in one and "right" in its:
            gaps.append(right_of(one) - right_of(its))
    if not gaps:
        return None
    images = np.mean(gaps, axis=0)
    low, high = bootstrap_interval(images, seed=0, resamples=_RESAMPLES)
    return Contrast(seed_difference([float(images.mean())], [0.0]), low, high)


def accuracy(lines: Sequence[Line], stage: Stage) -> tuple[list[float], int, int]:
    """Accuracies, one a seed, and of all images together how many are right, and how many there are."""
    found = [each for line in lines if (each := answers(line, stage)) is not None]
    return [float(each.mean()) for each in found], sum(int(each.sum()) for each in found), sum(map(len, found))


def ratio(pairs: Sequence[tuple[Line, Line]], of: Callable[[Line, Line], Sequence[float]]) -> Ratio | None:
    """The geometric mean of ratios, which `of` gives for a pair of lines; pairs of one seed go into one mean."""
    by_seed: dict[int, list[float]] = {}
    for a, b in pairs:
        by_seed.setdefault(a["seed"], []).extend(math.log(value) for value in of(a, b))
    values = [statistics.fmean(logs) for logs in by_seed.values() if logs]
    if not values:
        return None
    low, high = mean_interval(values) if len(values) > 1 else (None, None)
    return Ratio(
        math.exp(statistics.fmean(values)),
        None if low is None else math.exp(low),
        None if high is None else math.exp(high),
    )


def layer_ratios(key: str) -> Callable[[Line, Line], list[float]]:
    """A figure of each layer of the first line over that of the second."""

    def of(line: Line, other: Line) -> list[float]:
        found = {layer["path"]: layer for layer in other["layers"]}
        return [layer[key] / found[layer["path"]][key] for layer in line["layers"] if layer["path"] in found]

    return of


def left(line: Line, key: str) -> float:
    """What share of the parameters or multiplications is left."""
    return line[key][1] / line[key][0]


def operations(line: Line, other: Line) -> list[float]:
    """Multiplications of one over those of the other."""
    return [line["multiplications"][1] / other["multiplications"][1]]
