"""What a training step costs: time and saved activations of each entry as ratios to full fine-tuning."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from plan import WHOLE, Task, entries
from runs import build
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader, TensorDataset

from convpeft.training.engine import Engine
from convpeft.training.history import Position
from convpeft.training.recipe import Recipe, make_recipe

_STEPS = 5  # of an epoch; 80 images in batches of 16
_CLASSES = 4


class Noise:
    """Batches of noise in memory; what they show changes no time and no size."""

    def __init__(self, task: Task, size: tuple[int, int], *, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        count = steps * task.batch_size
        images = torch.randn(count, 3, *size, generator=generator)
        labels = torch.randint(_CLASSES, (count,), generator=generator)
        self.loader = DataLoader(TensorDataset(images, labels, torch.arange(count)), batch_size=task.batch_size)
        self.one = [(images[:1], labels[:1], torch.zeros(1, dtype=torch.int64))]

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


class Stepper:
    """One adapted network with its optimiser, ready to go on training."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.model, preprocessing = build(recipe, classes=_CLASSES)
        self._batches = Noise(task, preprocessing.size, steps=_STEPS)
        self._engine = Engine(self.model, self._batches, recipe.train, None)
        self._epoch = 0

    def time(self) -> float:
        """Train for an epoch and return its seconds; the validation after it is not in them."""
        self._epoch += 1
        return self._engine.run_epoch(Position(self._epoch), self._batches.one).seconds


def measure_cost(task: Task, root: Path, names: list[str], *, rounds: int) -> list[dict[str, Any]]:
    """Time and saved bytes of each named entry; each epoch is paired with one of full fine-tuning just before it."""
    every = entries()
    recipes = {
        name: make_recipe(task.recipe(root, _longer(every[name], rounds + 1), seed=0)) for name in {*names, WHOLE}
    }
    whole_bytes = saved_bytes(task, recipes[WHOLE])
    found = {name: saved_bytes(task, recipes[name]) for name in names}
    longest = _longer(every[WHOLE], (rounds + 1) * len(names))
    reference = Stepper(task, make_recipe(task.recipe(root, longest, seed=0)))
    steppers = {name: Stepper(task, recipes[name]) for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):  # the first warms up and is not kept
        for name, stepper in steppers.items():
            whole, own = reference.time(), stepper.time()
            if number:
                ratios[name].append(own / whole)
                times[name].append(own / _STEPS)
        print(f"{task.name} cost: round {number} of {rounds}", flush=True)
    return [
        {
            "entry": name,
            "step_ms": round(1000 * statistics.median(times[name]), 2),
            "time_ratios": [round(ratio, 4) for ratio in ratios[name]],
            "saved_bytes": found[name],
            "saved_ratio": round(found[name] / whole_bytes, 4),
        }
        for name in names
    ]


def saved_bytes(task: Task, recipe: Recipe) -> int:
    """Bytes that autograd keeps from forward to backward in one step, each storage once, the model's own left out."""
    model, preprocessing = build(recipe, classes=_CLASSES)
    noise = Noise(task, preprocessing.size, steps=1)
    engine = Engine(model, noise, recipe.train, None)
    own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(model)}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # keeps the storage, so that no other gets its address

    with saved_tensors_hooks(pack, lambda kept: kept):
        engine.run_epoch(Position(1), noise.one)
    engine.close()
    return sum(sizes.values())


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _longer(extra: dict[str, dict[str, Any]], epochs: int) -> dict[str, dict[str, Any]]:
    """The entry with as many epochs as are timed, for methods that spread their work over the training."""
    return extra | {"train": extra.get("train", {}) | {"epochs": epochs}}
