"""A transfer that tests on one fold after the other, each with its own seed and its own tuning, as one comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common.comparison import Comparison, Setting, answers_of
from common.contrasts import Contrast, contrast
from numpy.typing import NDArray
from plan import FOLD

from convpeft.evaluation import seed_difference


class Folds(Comparison):
    """Every image is tested once; `seeds` are the folds, and each has its own test images."""

    @property
    def test_images(self) -> int:
        """How many there are in all folds."""
        return sum(run["images"]["test"] for run in self.cell(self.arms[0], self.settings[0]).runs)

    def at_edge(self) -> list[tuple[str, Setting, float]]:
        """Where the chosen rate of a fold is the lowest or the highest that was tried."""
        found: list[tuple[str, Setting, float]] = []
        for cell in self.cells():
            rates = [each["lr"] for each in self.tried(cell.arm, cell.setting)]
            chosen = [run["lr"] for run in cell.runs]
            found += [(cell.arm, cell.setting, rate) for rate in chosen if rates and rate in (rates[0], rates[-1])]
        return found

    def _right(self, arms: Sequence[str], setting: Setting) -> NDArray[np.float64]:
        """The share of some arms that is right, (folds, test images of all folds); nan for those of other folds."""
        answers = [[answers_of(run) for run in self.cell(arm, setting).runs] for arm in arms]
        rows = [np.mean(fold, axis=0) for fold in zip(*answers, strict=True)]
        found = np.full((len(rows), sum(map(len, rows))), np.nan)
        start = 0
        for place, row in enumerate(rows):
            found[place, start : start + len(row)] = row
            start += len(row)
        return found

    def _contrast(self, gaps: NDArray[np.float64]) -> Contrast:
        """Over the folds, which differ in all that is drawn, and over the images of all of them, patients whole."""
        groups = self.content["groups_by_seed"]
        kept = [patient for seed in self.seeds for patient in groups[seed]] if groups else None
        images = contrast(np.nansum(gaps, axis=0)[np.newaxis], kept)
        over_folds = np.nanmean(gaps, axis=1).tolist()
        return Contrast(seed_difference(over_folds, [0.0] * len(over_folds)), images.low, images.high)


def read_comparisons(results: Path) -> tuple[str, list[Comparison]]:
    """The budget, and each transfer with what there is of it."""
    content = json.loads(results.read_text(encoding="utf-8"))
    whole: dict[str, Comparison] = {}
    folds: dict[str, list[Mapping[str, Any]]] = {}
    for name, task in content["tasks"].items():
        transfer, fold, _ = name.partition(FOLD)
        if fold:
            folds.setdefault(transfer, []).append(task)
            whole[transfer] = Folds(transfer, _joined(folds[transfer]))
        else:
            whole[name] = Comparison(name, task)
    if not whole:
        raise SystemExit(f"{results}: holds no comparison yet. Run one first.")
    return content["budget"], list(whole.values())


def _joined(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several folds as one: patients are numbered through, by the seed of their fold."""
    first = tasks[0]
    groups: dict[int, list[int]] = {}
    above = 0
    for task in tasks:
        if task["test_groups"] is not None:
            groups[task["runs"][0]["seed"]] = [above + number for number in task["test_groups"]]
            above += max(task["test_groups"]) + 1
    return {
        **first,
        "planned": sum(task["planned"] for task in tasks),
        "test_digest": ", ".join(task["test_digest"][:16] for task in tasks),
        "test_groups": [patient for fold in groups.values() for patient in fold] or None,
        "groups_by_seed": groups,
        "runs": [run for task in tasks for run in task["runs"]],
        "tried": [{**trial, "fold": task["runs"][0]["seed"]} for task in tasks for trial in task["tried"]],
    }
