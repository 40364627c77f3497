"""What the runs of one task come to by each measure: clean accuracy, and means over corrupted forms."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cells import cells_of
from common.comparison import Comparison, Line, Setting
from common.contrasts import Contrast, contrast
from numpy.typing import NDArray

from convpeft.data.corruptions import COMMON, EXTRA, RAIN
from convpeft.evaluation import mean_and_deviation, mean_interval

HEAD, SCRATCH, NORMS, WHOLE = "probe", "scratch", "norm-tuning", "full"
CLEAN, MCA_15, MCA_19 = "clean", "mCA-15", "mCA-19"
_MEANS = {MCA_15: COMMON, MCA_19: (*COMMON, *EXTRA), RAIN: (RAIN,)}


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


class Summary(Comparison):
    """A comparison whose runs answered to corrupted images too; a measure or a corruption stands for a setting."""

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        super().__init__(name, content)
        self.names: list[str] = content["corrupted"]["names"] if content["corrupted"] else []
        self.measures = [CLEAN, *(key for key, names in _MEANS.items() if set(names) <= set(self.names))]

    def first(self, arm: str) -> Line:
        """Its run with the first seed."""
        return self.cell(arm, CLEAN).runs[0]

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

    @property
    def chosen(self) -> str:
        """The arm of LoRA-C that the trials on validation put first."""
        best = {arm: max((t["val_accuracy"], -t["val_loss"]) for t in self.tried(arm, CLEAN)) for arm in self.lora_c()}
        return max(best, key=lambda arm: best[arm])

    def level(self, arm: str, measure: str) -> Level:
        """The accuracy of an arm by a measure or under a corruption."""
        return Level(tuple(self._right([arm], measure).mean(axis=1).tolist()))

    def contrast(self, arms: Sequence[str], others: Sequence[str], setting: Setting) -> Contrast:
        """The mean of some arms less the mean of others, by a measure; an image with all its forms counts as one."""
        gaps = self._right(arms, setting) - self._right(others, setting)
        return contrast(gaps, None if setting == CLEAN else self._images[self._kept(setting)].tolist())

    def _told(self, arm: str) -> dict[str, Any]:
        """Its method's options, and alpha over the rank as `ratio`."""
        method = self.first(arm)["method"]
        return {**method, "ratio": method.get("alpha", 0.0) / method.get("rank", 1)}

    def _right(self, arms: Sequence[str], setting: Setting) -> NDArray[np.float64]:
        """The share of some arms that is right, (seeds, answers)."""
        if setting == CLEAN:
            return super()._right(arms, setting)
        kept = self._kept(setting)
        answers = [[self._answers(run)[kept] for run in self.cell(arm, CLEAN).runs] for arm in arms]
        return np.asarray(answers).mean(axis=0)

    def _answers(self, run: Line) -> NDArray[np.float64]:
        packed = np.frombuffer(base64.b64decode(run["corrupted"]), dtype=np.uint8)
        return np.unpackbits(packed)[: len(self._images)].astype(np.float64)

    def _kept(self, measure: Setting) -> NDArray[np.bool_]:
        """Which answers belong to a measure or a corruption."""
        return np.isin(self._named, _MEANS.get(str(measure), (str(measure),)))

    @cached_property
    def _images(self) -> NDArray[np.int64]:
        """Of each answer to a corrupted image, the number of the test image."""
        return np.concatenate(list(self._cells.values()))

    @cached_property
    def _named(self) -> NDArray[np.str_]:
        """Of each answer to a corrupted image, the corruption."""
        return np.repeat([name for name, _ in self._cells], [len(numbers) for numbers in self._cells.values()])

    @cached_property
    def _cells(self) -> dict[tuple[str, int], NDArray[np.int64]]:
        told = self.content["corrupted"]
        return cells_of(np.asarray(told["labels"], dtype=np.int64), told["parts"], told["names"])
