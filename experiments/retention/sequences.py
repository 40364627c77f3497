"""Tasks one after the other: full fine-tuning, one adapter for all of them, one adapter a task, and heads alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cells import Setting, build
from images import draw
from numpy.typing import NDArray
from plan import ARMS, FULL, HEAD, LORA, Sequence, Transfer
from torch import Tensor, nn

import convpeft
from convpeft.data import ImageBatches, Split, load_data

SCENARIOS = ("groups", "turns")
MODES = {"full": FULL, "one adapter": LORA, "adapter a task": LORA, "head a task": HEAD}  # and the arm of each
KEYS = ("kind", "scenario", "mode", "seed")
_BATCH = 32


@dataclass(frozen=True)
class Task:
    """Images in memory, and the rows of the head that the task uses."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    rows: tuple[int, int]


def run_sequence(
    setting: Setting, transfer: Transfer, plan: Sequence, scenario: str, mode: str, seed: int, lr: float
) -> dict[str, Any]:
    """Learn all tasks in order, measure every task after each, and return the line of the results."""
    began = time.perf_counter()
    tasks = make_tasks(setting, transfer, plan, scenario, seed)
    count = max(task.rows[1] for task in tasks)
    torch.manual_seed(seed)
    model = _fresh(setting, transfer, mode, count)
    alone = mode.endswith("a task")
    untrained = [measure(model, task) for task in tasks]
    matrix: list[list[float]] = []
    seen: list[float] = []  # of each task, measured when its own adapter was last changed
    for number, task in enumerate(tasks):
        if alone and number:
            model = _fresh(setting, transfer, mode, count)
        learn(model, task, epochs=plan.epochs, lr=lr, seed=[seed, number])
        if alone:  # tasks learned before have their own adapters, which nothing has touched; later ones have none yet
            seen.append(measure(model, task))
            matrix.append(seen + untrained[number + 1 :])
        else:
            matrix.append([measure(model, other) for other in tasks])
    return {
        "kind": "sequence",
        "scenario": scenario,
        "mode": mode,
        "seed": seed,
        "lr": lr,
        "matrix": matrix,
        "untrained": untrained,
        "seconds": round(time.perf_counter() - began, 2),
    }


def _fresh(setting: Setting, transfer: Transfer, mode: str, count: int) -> nn.Module:
    """The base with an untrained adapter and head."""
    model, _ = build(setting, transfer)
    options = dict(ARMS[MODES[mode]].method)
    return convpeft.attach(model, options.pop("name"), num_classes=count, **options)


def make_tasks(setting: Setting, transfer: Transfer, plan: Sequence, scenario: str, seed: int) -> list[Task]:
    """The tasks: groups of letters with rows of their own, or the same letters turned, with the same rows."""
    data = load_data(transfer.target.format(root=setting.root), seed=0)
    _, preprocessing = build(setting, transfer)
    if scenario == "groups":
        each = len(data.classes) // plan.groups
        ranges = [(number * each, (number + 1) * each) for number in range(plan.groups)]
    else:
        ranges = [(0, len(data.classes))] * plan.turns
    tasks: list[Task] = []
    for number, (first, end) in enumerate(ranges):
        parts: list[Tensor] = []
        for split, size in ((data.train, plan.images), (data.test, plan.test)):
            inside = split.subset(np.flatnonzero((split.labels >= first) & (split.labels < end)))
            images, labels = _tensors(draw(inside, size, seed + number), preprocessing)
            parts += [torch.rot90(images, number, (2, 3)) if scenario == "turns" else images, labels - first]
        tasks.append(Task(*parts, rows=(first, end)))
    return tasks


def learn(model: nn.Module, task: Task, *, epochs: int, lr: float, seed: list[int]) -> None:
    """Train on one task; rows of the head that are other tasks' get no gradient, and nothing decays."""
    optimizer = torch.optim.AdamW(convpeft.param_groups(model, lr=lr), weight_decay=0.0)
    rng = np.random.default_rng(seed)
    steps = epochs * -(-len(task.labels) // _BATCH)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(task.labels)), -(-len(task.labels) // _BATCH)):
            logits = model(task.images[rows])[:, slice(*task.rows)]
            loss = nn.functional.cross_entropy(logits, task.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    model.eval()


def measure(model: nn.Module, task: Task) -> float:
    """Accuracy on a task's test images, among its own classes."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(task.test_labels), 256):
            rows = slice(start, start + 256)
            logits = model(task.test_images[rows])[:, slice(*task.rows)]
            right += int((logits.argmax(1) == task.test_labels[rows]).sum())
    return right / len(task.test_labels)


def _tensors(split: Split, preprocessing: Any) -> tuple[Tensor, Tensor]:
    batches = list(ImageBatches(split, preprocessing, batch_size=256))
    labels: NDArray[np.int64] = np.concatenate([labels.numpy() for _, labels, _ in batches])
    return torch.cat([images for images, _, _ in batches]), torch.from_numpy(labels)
