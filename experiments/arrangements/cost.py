"""How long an epoch of each arm takes beside one of full fine-tuning, in turns on one core."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from arms import WHOLE

from convpeft.comparing.cells import with_keys
from convpeft.comparing.grid import read_grid
from convpeft.data import load_data
from convpeft.training.engine import Engine
from convpeft.training.history import Position
from convpeft.training.preparing import prepare_run
from convpeft.training.recipe import Recipe
from convpeft.training.serving import serve

_IMAGES = 60  # of an epoch, about


class Trainer:
    """One arm ready to go on training as a run trains it: what lies before its first trained layer is computed once."""

    def __init__(self, recipe: Recipe, folder: Path, held: ExitStack) -> None:
        prepared = prepare_run(recipe)
        self._served = held.enter_context(serve(prepared, folder, folder / "last", resume=False))
        self._engine = Engine(prepared.model, self._served.train, recipe.train, None)
        self._one = [tuple(each[:1] for each in next(iter(prepared.batches["val"])))]
        held.callback(self._engine.close)
        self._epoch = 0

    def time(self) -> float:
        """Train for an epoch, look at one image, and return the processor's seconds: what else runs is not in them."""
        self._epoch += 1
        began = time.process_time()
        self._engine.run_epoch(Position(self._epoch), self._one)
        return time.process_time() - began


def measure_cost(path: Path, assign: Sequence[str], files: Path, *, rounds: int) -> dict[str, Any]:
    """An epoch of each arm as a ratio to one of full fine-tuning just before it; the first round only warms up.

    Args:
        path: The grid.
        assign: What is set beside it.
        files: Folder of the files that it names.
        rounds: How often.
    """
    torch.set_num_threads(1)
    with contextlib.chdir(files), ExitStack() as held:
        recipes = _recipes(path, assign, epochs=(rounds + 1) * 32)
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        reference = Trainer(recipes[WHOLE], folder / "reference", held)
        trainers = {arm: Trainer(recipe, folder / str(n), held) for n, (arm, recipe) in enumerate(recipes.items())}
        ratios: dict[str, list[float]] = {arm: [] for arm in trainers}
        times: dict[str, list[float]] = {arm: [] for arm in trainers}
        for number in range(rounds + 1):
            for arm, trainer in trainers.items():
                whole, own = reference.time(), trainer.time()
                if number:
                    ratios[arm].append(round(own / whole, 4))
                    times[arm].append(own)
            print(f"{path.name}: round {number} of {rounds}", flush=True)
    return {
        "images": _IMAGES,
        "arms": {arm: {"seconds": round(statistics.median(times[arm]), 4), "ratios": ratios[arm]} for arm in trainers},
    }


def _recipes(path: Path, assign: Sequence[str], *, epochs: int) -> dict[str, Recipe]:
    """A recipe of each arm with few images; the rate is low, so that nothing breaks down in many epochs."""
    cells = {cell.arm: cell.recipe for cell in reversed(read_grid(path, assign=assign).cells)}
    classes = len(load_data(cells[WHOLE].data.source).classes)
    few = {"data.per_class": max(1, _IMAGES // classes), "data.val_per_class": 1}
    every = {**few, "train.lr": 1e-4, "train.epochs": epochs}
    return {arm: with_keys(recipe, every) for arm, recipe in reversed(cells.items())}
