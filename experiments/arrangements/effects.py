"""Differences between groups of arms: on one transfer, on the mean of several, and between two networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from arms import arm_on
from common.comparison import Comparison, answers_of
from common.contrasts import Contrast, contrast
from numpy.typing import NDArray

from convpeft.evaluation import seed_difference

Side = Sequence[str]


def effect(found: Comparison, arms: Side, others: Side) -> Contrast:
    """The mean of some arms less the mean of others on one transfer, each arm counted alike."""
    return contrast(_gaps(found, arms, others, found.seeds), found.content["test_groups"])


def mean_effect(comparisons: Sequence[Comparison], arms: Side, others: Side) -> Contrast:
    """The same on the mean of transfers with test images of their own, each transfer counted alike.

    Their draws have nothing in common, so that a seed of one goes with the seed of the same number of another.
    """
    seeds = shared_seeds(comparisons)
    every = [_gaps(found, arms, others, seeds) for found in comparisons]
    alone = [contrast(each, found.content["test_groups"]) for each, found in zip(every, comparisons, strict=True)]
    by_seed = np.mean([each.mean(axis=1) for each in every], axis=0).tolist()
    mean = float(np.mean(by_seed))
    reach = math.sqrt(math.fsum(((each.high - each.low) / 2) ** 2 for each in alone)) / len(alone)
    return Contrast(seed_difference(by_seed, [0.0] * len(by_seed)), mean - reach, mean + reach)


def change_of_effect(found: Comparison, other: Comparison, arms: Side, others: Side) -> Contrast:
    """By how much the difference is larger on one network than on another that learns the same images."""
    if found.content["test_digest"] != other.content["test_digest"]:
        raise SystemExit(f"{found.name} and {other.name} were not tested on the same images.")
    seeds = shared_seeds([found, other])
    first, second = (_gaps(each, arms, others, seeds) for each in (found, other))
    return contrast(first - second, found.content["test_groups"])


def shared_seeds(comparisons: Sequence[Comparison]) -> list[int]:
    """Seeds that every transfer has whole."""
    return sorted(set[int].intersection(*(set(found.seeds) for found in comparisons)))


def accuracies(found: Comparison, arm: str, seeds: Sequence[int]) -> list[float]:
    """Test accuracies of an arm in percent, in the order of some seeds."""
    return [100 * run["test_accuracy"] for run in _runs(found, arm, seeds)]


def _gaps(found: Comparison, arms: Side, others: Side, seeds: Sequence[int]) -> NDArray[np.float64]:
    """How much more right one side is, (seeds, test images)."""
    return _right(found, arms, seeds) - _right(found, others, seeds)


def _right(found: Comparison, arms: Side, seeds: Sequence[int]) -> NDArray[np.float64]:
    answers = [[answers_of(run) for run in _runs(found, arm_on(found.name, arm), seeds)] for arm in arms]
    return np.asarray(answers, dtype=np.float64).mean(axis=0)


def _runs(found: Comparison, arm: str, seeds: Sequence[int]):
    return [run for run in found.cell(arm, found.settings[0]).runs if run["seed"] in seeds]
