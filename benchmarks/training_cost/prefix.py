"""Epochs from the prefix cache, last stage and head, against epochs of full fine-tuning: both by `convpeft.train`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measures import spread
from networks import build, convolution_paths
from plan import CLASSES, LAYOUTS, LEARNING_RATE, NETS, RANK, SEED, SIZE, WEIGHT_DECAY, Cell
from trainee import TorchTrainee
from with_torch import make

import convpeft
from convpeft.training.history import Epoch

IMAGES, VAL, ROUNDS = 256, 32, 2
LAST_STAGE = "layer4"
_EPOCHS = {"cached": 6, "full": 3}  # the first of each warms up
_PLAIN_STEPS = 5


class _Watcher:
    """Keeps the seconds of every epoch and of filling the cache."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.filling, self._began = 0.0, time.perf_counter()

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """Nothing to note."""

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch.seconds)

    def prepare(self, what: str, done: int, total: int) -> None:
        """The first call comes after the first batch, so that one batch more is added."""
        if not self.filling:
            self._first, self._began, self.filling = done, time.perf_counter(), 1e-9
        else:
            self.filling = (time.perf_counter() - self._began) * total / (total - self._first)


def measure(net: str, *, fast: bool, threads: int, size: int = SIZE) -> dict[str, Any]:
    """One row: seconds of an epoch from the cache, of full fine-tuning, and of filling the cache."""
    size, batch = (32, 8) if fast else (size, NETS[net].batch)
    images, rounds = (32, 1) if fast else (IMAGES, ROUNDS)
    cell = Cell(net, "full", batch, size)
    include = [path for path in convolution_paths(build(cell)) if path.startswith(f"{LAST_STAGE}.")]
    methods: dict[str, dict[str, Any]] = {
        "cached": {"name": "lora", "rank": RANK, "include": include},
        "full": {"name": "full", "norm": "train"},
    }
    found: dict[str, list[list[float]]] = {name: [] for name in methods}
    filling: list[float] = []
    notes: list[str] = []
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "noise.npz"
        _write_noise(data, images, size)
        for number in range(rounds):
            plain.append(_plain_epoch(cell, images, steps=2 if fast else _PLAIN_STEPS))
            for name, method in methods.items():
                watcher = _Watcher()
                recipe = {
                    "model": {"source": f"torchvision/{net}", "pretrained": False, "image_size": size},
                    "data": {"source": f"npz:{data}"},
                    "method": method,
                    "train": {
                        "epochs": _EPOCHS[name],
                        "batch_size": batch,
                        "lr": LEARNING_RATE,
                        "weight_decay": WEIGHT_DECAY,
                        "prefix_cache": "on" if name == "cached" else "off",
                        "seed": SEED,
                    },
                    "out": str(Path(folder) / f"{name}-{number}"),
                }
                result = convpeft.train(recipe, watcher=watcher)
                found[name].append(watcher.epochs[1:])
                if name == "cached":
                    filling.append(watcher.filling)
                    notes = [note for note in result.notes if "cached features" in note]
    if not notes:
        raise AssertionError("the run did not train from cached features")
    cached, full = ([spread(epochs)[1] for epochs in found[name]] for name in methods)
    return {
        "images": images,
        "batch": batch,
        "size": size,
        "stage": LAST_STAGE,
        "share": notes[0].split("features: ")[1].split(" of the network")[0],
        "cached_seconds": cached,
        "full_seconds": full,
        "plain_seconds": plain,
        "filling_seconds": filling,
        "threads": threads,
    }


def _plain_epoch(cell: Cell, images: int, *, steps: int) -> float:
    """What as many images take in a plain loop of PyTorch, in the faster layout."""
    best = float("inf")
    for layout in LAYOUTS:
        trainee = make(cell.laid_out(layout))
        assert isinstance(trainee, TorchTrainee)
        trainee.step()
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            trainee.step()
            times.append(time.perf_counter() - began)
        best = min(best, spread(times)[1] * images / cell.batch)
    return best


def _write_noise(path: Path, images: int, size: int) -> None:
    rng = np.random.default_rng(SEED)
    counts = {"train": images, "val": VAL, "test": VAL}
    arrays: dict[str, Any] = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % CLASSES
    np.savez(path, **arrays)
