"""What stands beside accuracy: AUC, how much an arm varies, what an epoch takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from common.comparison import Comparison, Setting
from common.contrasts import Contrast
from stability import Ratio, deviation_ratio

from convpeft.evaluation import SeedDifference, detectable_over_seeds, mean_interval, seed_difference

TIE = 0.02  # a difference below two points counts as none; chosen before anything was trained
Cells = Sequence[tuple[Comparison, Setting]]


def outcome(found: Contrast) -> str:
    """Who has won: both intervals leave zero out; or both lie within the margin of a tie; or it is open."""
    if found.sign:
        return "wins" if found.sign > 0 else "loses"
    seeds = found.seeds
    if seeds.low is None or seeds.high is None:
        return "open"
    return "ties" if max(-seeds.low, seeds.high, -found.low, found.high) < TIE else "open"


def auc_difference(found: Comparison, arm: str, other: str, setting: Setting) -> SeedDifference | None:
    """How much larger the AUC of one arm is; None where there is none."""
    first, second = (auc_values(found, each, setting) for each in (arm, other))
    return seed_difference(first, second) if first and second else None


def auc_values(found: Comparison, arm: str, setting: Setting) -> list[float]:
    """The macro AUC on the test images, one a draw; empty where a run has none."""
    values = [run["test_auc"] for run in found.cell(arm, setting).runs]
    return [] if None in values else values


def varies_less(cells: Cells, arm: str, other: str) -> Ratio | None:
    """The deviation of one arm's accuracy over that of another, pooled over some cells."""
    both = [(found, setting) for found, setting in cells if arm in found.arms and other in found.arms]
    pairs = [(found.cell(arm, each).accuracies, found.cell(other, each).accuracies) for found, each in both]
    pairs = [pair for pair in pairs if len(pair[0]) > 1]
    return deviation_ratio(pairs) if pairs else None


def lost_elsewhere(found: Comparison, arm: str, setting: Setting) -> float | None:
    """How much validation accuracy an arm loses on average at the rates that were not chosen, over the tunings."""
    tunings: dict[int, list[float]] = {}
    for trial in found.tried(arm, setting):
        tunings.setdefault(trial.get("fold", 0), []).append(trial["val_accuracy"])
    lost = [max(tried) - (sum(tried) - max(tried)) / (len(tried) - 1) for tried in tunings.values() if len(tried) > 1]
    return statistics.fmean(lost) if lost else None


def epoch_seconds(found: Comparison, arm: str, setting: Setting) -> float:
    """The median over the draws."""
    return statistics.median(run["epoch_seconds"] for run in found.cell(arm, setting).runs)


def epoch_ratio(found: Comparison, arm: str, other: str, setting: Setting) -> Ratio | None:
    """What an epoch of one arm takes over what one of another takes, draw by draw; None for a single draw."""
    runs = zip(found.cell(arm, setting).runs, found.cell(other, setting).runs, strict=True)
    logs = [math.log(a["epoch_seconds"] / b["epoch_seconds"]) for a, b in runs]
    if len(logs) < 2:
        return None
    low, high = mean_interval(logs)
    reach = detectable_over_seeds(len(logs), deviation=statistics.stdev(logs))
    return Ratio(math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high), math.exp(reach), len(logs))


def span(values: Iterable[float], form: str) -> str:
    """The lowest and the highest of some values, once where they read the same."""
    found = [format(value, form) for value in values]
    return found[0] if min(found) == max(found) else f"{min(found, key=float)} to {max(found, key=float)}"
