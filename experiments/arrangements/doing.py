"""Run a budget: prepare its files, compare its transfers seed by seed, time its arms."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.collecting import Store, Task
from common.running import compare
from plan import BUDGETS, SCORED, TIMED

from convpeft.comparing import read_grid
from convpeft.comparing.store import RESULTS, read_results
from convpeft.reporting import write_whole

HERE = Path(__file__).resolve().parent


class Doing:
    """What the command line asks for, with one budget.

    Args:
        budget: Its name.
        data: Folder of the public data sets.
        work: Where files and runs lie.
        workers: Runs at once.
    """

    def __init__(self, budget: str, *, data: Path, work: Path, workers: int) -> None:
        self._name, self._budget = budget, BUDGETS[budget]
        self._data, self._work, self._workers = data, work.resolve() / budget, workers
        self._files = self._work / "files"
        known = os.environ.get("PYTHONPATH")
        os.environ["OMP_NUM_THREADS"] = "1"  # sums are the same whatever runs beside
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *([known] if known else [])])  # for bottleneck.py

    def run(self, results: Path) -> None:
        """Every scored transfer with its first seed, then with one seed more, and so on; then the other form."""
        self._prepare()
        shutil.copyfile(self._files / "prepared.json", results / "prepared.json")
        store = self._store(results)
        for scored in (True, False):
            tasks = [task for task in self._budget.tasks if (task.name in SCORED) == scored]
            for count, task in itertools.product(range(1, len(self._budget.seeds) + 1), tasks):
                self._compare(_with_seeds(task, self._budget.seeds[:count]), store, self._work)
                self._take(task, store)

    def collect(self, results: Path) -> None:
        """Keep what a run has come to that was cut off."""
        store = self._store(results)
        for task in self._budget.tasks:
            rows = read_results(self._work / task.name / RESULTS).values()
            if any(row["kind"] == "run" for row in rows):
                self._take(task, store)

    def cost(self, results: Path) -> None:
        """Time the arms on one transfer of each network."""
        from cost import measure_cost

        self._prepare()
        tasks = [task for task in self._budget.tasks if task.name in TIMED]
        found = {
            task.name: measure_cost(HERE / task.grid, task.assign, self._files, rounds=self._budget.rounds)
            for task in tasks
        }
        write_whole(results / "cost.json", (json.dumps(found, indent=1) + "\n").encode())

    def cell(self, name: str, arm: str, seed: int) -> None:
        """Tune and train one arm with one seed, beside what is there; the figures come to cells.json below the work."""
        self._prepare()
        task = {task.name: task for task in self._budget.tasks}[name]
        arms = tomllib.loads((HERE / task.grid).read_text(encoding="utf-8"))["arm"]
        chosen = {each["name"]: each for each in arms}[arm]
        alone = dataclasses.replace(task, assign=(*task.assign, f"arm=[{_inline(chosen)}]", f"baseline={arm}"))
        store = Store(self._work / "cells.json", self._name, setting=_per_class)
        self._compare(_with_seeds(alone, [seed]), store, self._work / "cells")

    def _compare(self, task: Task, store: Store, work: Path) -> None:
        compare([task], store, grids=HERE, data=self._files, work=work, workers=self._workers)

    def _prepare(self) -> None:
        from prepare import prepare

        prepare(self._budget, self._data, self._files)

    def _store(self, results: Path) -> Store:
        return Store(results / "results.json", self._name, setting=_per_class)

    def _take(self, task: Task, store: Store) -> None:
        """Keep what is there of all that is planned."""
        whole = _with_seeds(task, self._budget.seeds)
        store.take(whole, read_grid(HERE / task.grid, assign=whole.assign), self._work / task.name, self._files)


def _with_seeds(task: Task, seeds: Sequence[int]) -> Task:
    return dataclasses.replace(task, assign=(*task.assign, f"grid.seeds={list(seeds)}"))


def _per_class(recipe: Mapping[str, Any]) -> int:
    return recipe["data"]["per_class"]


def _inline(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={_inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)
