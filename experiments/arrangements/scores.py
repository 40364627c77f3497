"""Figures that are no difference of accuracies: the decathlon score, sizes, and the share of an epoch's time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arms import HEAD, WHOLE
from common.comparison import Comparison
from effects import accuracies, shared_seeds

from convpeft.evaluation import SeedDifference, decathlon_score, mean_interval, seed_difference


@dataclass(frozen=True)
class Score:
    """The decathlon score of an arm, one a seed, and how much it is above that of full fine-tuning."""

    arm: str
    scores: list[float]
    lead: SeedDifference


def scores_of(comparisons: Sequence[Comparison]) -> list[Score]:
    """The score of every arm that all transfers have, highest first; the baseline is the mean of `full`."""
    seeds = shared_seeds(comparisons)
    baseline = [statistics.fmean(accuracies(found, WHOLE, seeds)) for found in comparisons]
    arms = [arm for arm in comparisons[0].arms if all(arm in found.arms for found in comparisons)]

    def of(arm: str) -> list[float]:
        by_seed = zip(*(accuracies(found, arm, seeds) for found in comparisons), strict=True)
        return [decathlon_score(each, baseline=baseline) for each in by_seed]

    whole = of(WHOLE)
    made = [Score(arm, scores := of(arm), seed_difference(scores, whole)) for arm in arms]
    return sorted(made, key=lambda each: -statistics.fmean(each.scores))


def parameters(found: Comparison) -> dict[str, int]:
    """What each arm trains beside the new head."""
    trained = {arm: found.cell(arm, found.settings[0]).runs[0]["trainable"] for arm in found.arms}
    return {arm: number - trained[HEAD] for arm, number in trained.items()}


@dataclass(frozen=True)
class Share:
    """An epoch's time as a share of one of full fine-tuning: the geometric mean over the rounds."""

    mean: float
    low: float  # Student's 95 % interval of the mean logarithm
    high: float
    least: float
    most: float


def share_of(ratios: Sequence[float]) -> Share:
    """Sum up ratios of two rounds or more."""
    logs = [math.log(ratio) for ratio in ratios]
    low, high = mean_interval(logs)
    return Share(math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high), min(ratios), max(ratios))


def shares(measured: Mapping[str, Any]) -> dict[str, Share]:
    """Of every arm of one network."""
    return {arm: share_of(told["ratios"]) for arm, told in measured["arms"].items()}
