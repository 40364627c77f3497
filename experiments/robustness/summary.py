"""What the runs of one task come to: accuracy by measure and arm, and differences over seeds and over test images."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cells import cells_of
from numpy.typing import NDArray

from convpeft.data.corruptions import COMMON, EXTRA, RAIN
from convpeft.evaluation import SeedDifference, mean_and_deviation, mean_interval, seed_difference

HEAD, SCRATCH, NORMS, WHOLE = "probe", "scratch", "norm-tuning", "full"
CLEAN, MCA_15, MCA_19 = "clean", "mCA-15", "mCA-19"
MEASURES = {CLEAN: (), MCA_15: COMMON, MCA_19: (*COMMON, *EXTRA), RAIN: (RAIN,)}
_NORMAL = 1.959964  # 97.5 % quantile
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Contrast:
    """How much more accurate one side is than the other, on the same draws of images and the same test images.

    Attributes:
        seeds: Over the draws: what other training images would have given, with these test images.
        low: Lower end of the 95 % interval over the test images, each with all its corrupted forms, with these draws.
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


@dataclass(frozen=True)
class Level:
    """The accuracy of an arm by one measure, over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return mean_and_deviation(self.values)[0]

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval over the seeds, within 0..1; the value itself for a single one."""
        if len(self.values) < 2:
            return self.mean, self.mean
        low, high = mean_interval(self.values)
        return max(0.0, low), min(1.0, high)


class Summary:
    """One task; only seeds that every arm has are used."""

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        self.name, self.content = name, content
        self.arms: list[str] = content["arms"]
        runs: list[Line] = content["runs"]
        found = [{run["seed"] for run in runs if run["arm"] == arm} for arm in self.arms]
        self.seeds: list[int] = sorted(set[int].intersection(*found))
        if not self.seeds:
            raise SystemExit(f"{name}: no seed has every arm yet. Run it on.")
        self._runs = {(run["arm"], run["seed"]): run for run in runs if run["seed"] in self.seeds}
        self._check_draws()

    @property
    def measures(self) -> list[str]:
        """Those that there are images for."""
        names = self.names
        return [key for key, wanted in MEASURES.items() if set(wanted) <= set(names)]

    @property
    def names(self) -> list[str]:
        """The corruptions."""
        return self.content["corrupted"]["names"] if self.content["corrupted"] else []

    @property
    def test_images(self) -> int:
        """How many there are."""
        return self.first(self.arms[0])["images"]["test"]

    def first(self, arm: str) -> Line:
        """Its run with the first seed."""
        return self._runs[arm, self.seeds[0]]

    def lora_c(self, **options: Any) -> list[str]:
        """The arms of LoRA-C with these options, without AugMix; `ratio` is alpha over the rank."""
        wanted = {"name": "lora-c", **options}
        arms = [arm for arm in self.arms if self.first(arm)["augment"] != "augmix"]
        return [arm for arm in arms if wanted.items() <= self._told(arm).items()]

    def matched(self, key: str, value: Any, other: Any) -> tuple[list[str], list[str]]:
        """Arms of LoRA-C with a value of an option, and those that differ from them in having the other value alone."""
        pairs: list[tuple[str, str]] = []
        for arm in self.lora_c(**{key: value}):
            mine = self._told(arm)
            rest = {name: mine[name] for name in ("setting", "rank", "ratio") if name != key}
            pairs += [(arm, partner) for partner in self.lora_c(**rest, **{key: other})]
        return [arm for arm, _ in pairs], [partner for _, partner in pairs]

    @property
    def named(self) -> str:
        """The arm of LoRA-C that stands for it, chosen before anything was trained; the first where it is not there."""
        return (self.lora_c(setting="rk", rank=4, ratio=2.0) or self.lora_c(ratio=2.0))[0]

    def level(self, arm: str, measure: str) -> Level:
        """The accuracy of an arm by a measure."""
        return Level(tuple(self._right([arm], measure).mean(axis=1).tolist()))

    def by_corruption(self, arm: str) -> dict[str, float]:
        """The accuracy of an arm by corruption, over severities and seeds."""
        answers = np.mean([self._corrupted(arm, seed) for seed in self.seeds], axis=0)
        return {name: float(answers[self._named == place].mean()) for place, name in enumerate(self.names)}

    def contrast(self, arms: Sequence[str], others: Sequence[str], measure: str) -> Contrast:
        """The mean of some arms less the mean of others."""
        gaps = self._right(arms, measure) - self._right(others, measure)
        over_seeds = gaps.mean(axis=1).tolist()
        mean, reach = float(gaps.mean()), _NORMAL * clustered_error(gaps.mean(axis=0), self._groups(measure))
        return Contrast(seed_difference(over_seeds, [0.0] * len(over_seeds)), mean - reach, mean + reach)

    def differing(self, arm: str, other: str) -> tuple[int, int]:
        """On how many answers, clean and corrupted and of all seeds, two arms differ; and how many there are."""
        measures = [CLEAN] if not self.names else [CLEAN, *self.names]
        pairs = [(self._right([arm], each), self._right([other], each)) for each in measures]
        return int(sum((a != b).sum() for a, b in pairs)), int(sum(a.size for a, _ in pairs))

    def tried(self, arm: str) -> list[Line]:
        """The trials of an arm, by their rate."""
        return sorted((each for each in self.content["tried"] if each["arm"] == arm), key=lambda each: each["lr"])

    def at_edge(self) -> list[tuple[str, float]]:
        """Arms whose chosen rate is the lowest or the highest that was tried."""
        rates = {arm: [each["lr"] for each in self.tried(arm)] for arm in self.arms}
        chosen = {arm: self.first(arm)["lr"] for arm in self.arms}
        return [
            (arm, chosen[arm]) for arm in self.arms if rates[arm] and chosen[arm] in (rates[arm][0], rates[arm][-1])
        ]

    def _told(self, arm: str) -> dict[str, Any]:
        """Its method's options, and alpha over the rank as `ratio`."""
        method = self.first(arm)["method"]
        return {**method, "ratio": method.get("alpha", 0.0) / method.get("rank", 1)}

    def _right(self, arms: Sequence[str], measure: str) -> NDArray[np.float64]:
        """The share of some arms that is right, (seeds, answers)."""
        read: Callable[[str, int], NDArray[np.float64]] = self._clean
        if measure != CLEAN:
            wanted = MEASURES.get(measure, (measure,))
            kept = np.isin(self._named, [self.names.index(name) for name in wanted])

            def read(arm: str, seed: int) -> NDArray[np.float64]:
                return self._corrupted(arm, seed)[kept]

        return np.mean([[read(arm, seed) for seed in self.seeds] for arm in arms], axis=0)

    def _groups(self, measure: str) -> NDArray[np.int64]:
        """Which test image each answer belongs to."""
        if measure == CLEAN:
            return np.arange(self.test_images)
        wanted = MEASURES.get(measure, (measure,))
        return self._images[np.isin(self._named, [self.names.index(name) for name in wanted])]

    def _clean(self, arm: str, seed: int) -> NDArray[np.float64]:
        run = self._runs[arm, seed]
        return _bits(bytes.fromhex(run["right"]), run["images"]["test"])

    def _corrupted(self, arm: str, seed: int) -> NDArray[np.float64]:
        return _bits(base64.b64decode(self._runs[arm, seed]["corrupted"]), len(self._images))

    @cached_property
    def _cells(self) -> dict[tuple[str, int], NDArray[np.int64]]:
        told = self.content["corrupted"]
        return cells_of(np.asarray(told["labels"], dtype=np.int64), told["parts"], told["names"])

    @cached_property
    def _images(self) -> NDArray[np.int64]:
        """Of each answer to a corrupted image, the number of the test image."""
        return np.concatenate(list(self._cells.values()))

    @cached_property
    def _named(self) -> NDArray[np.int64]:
        """Of each answer to a corrupted image, the place of the corruption."""
        return np.concatenate(
            [np.full(len(numbers), self.names.index(name)) for (name, _), numbers in self._cells.items()]
        )

    def _check_draws(self) -> None:
        """Refuse arms that have not seen the same images, and seeds that have."""
        drawn: dict[int, set[tuple[str, str]]] = {}
        for (_, seed), run in self._runs.items():
            drawn.setdefault(seed, set()).add((run["train_digest"], run["val_digest"]))
        trains = {train for found in drawn.values() for train, _ in found}
        if any(len(found) != 1 for found in drawn.values()) or len(trains) != len(drawn):
            raise SystemExit(f"{self.name}: arms differ in their images, or seeds do not.")


def clustered_error(values: NDArray[np.float64], groups: Sequence[int] | NDArray[np.int64] | None) -> float:
    """placeholder until the common one"""
    numbers = np.arange(len(values)) if groups is None else np.asarray(groups)
    _, places = np.unique(numbers, return_inverse=True)
    sums = np.bincount(places, weights=values - values.mean())
    count = len(sums)
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)


def _bits(packed: bytes, count: int) -> NDArray[np.float64]:
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8))[:count].astype(np.float64)
