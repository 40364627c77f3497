"""One cell of the grid: build the base, adapt it, train it, and measure what it learned and what it kept."""

from __future__ import annotations

import functools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import convpeft
from convpeft.attachment import old_head
from convpeft.data import Dataset, ImageBatches, load_data
from convpeft.evaluation import classification_metrics, is_retained, predict_logits
from convpeft.models import load_model, preprocessing_of
from convpeft.training.loop import fit
from convpeft.training.preparing import adapt, batches, load_recipe_data
from convpeft.training.recipe import Recipe, make_recipe

_BATCH = 64  # for everything that is only looked at
_EDGE = 3  # pixels


@dataclass(frozen=True)
class Cell:
    """What to train; with `tuning` the test split is not touched."""

    tuning: bool
    target: str
    arm: str
    rank: int | None
    seed: int
    lr: float

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one cell from another in the results."""
        return ("tune" if self.tuning else "run", self.target, self.arm, self.rank, self.seed, self.lr)


@dataclass(frozen=True)
class Setting:
    """What all cells share: the grid, the folder with the data (empty for the cache), and the base's weights."""

    grid: dict[str, Any]
    root: str
    weights: Path

    def source(self, name: str) -> str:
        """The data spec of a source; rendered characters need no folder."""
        return name if name.startswith("glyphs:") else f"{name}:{self.root}"


def use_one_thread() -> None:
    """Processes share the cores; one thread each makes sums the same whatever runs beside."""
    torch.set_num_threads(1)


def run_cell(setting: Setting, cell: Cell) -> dict[str, Any]:
    """Train one cell and return its line of the results."""
    began = time.perf_counter()
    recipe = _recipe(setting, cell)
    dataset = _dataset(recipe.data.source, recipe)
    torch.manual_seed(cell.seed)
    model = _load(recipe.model.weights)
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    adapt(model, recipe, len(dataset.classes))
    served = {name: batches(dataset, name, preprocessing, recipe) for name in ("train", "val")}
    fitted = fit(model, served["train"], served["val"], recipe.train)
    line: dict[str, Any] = {
        **dict(zip(("kind", "target", "arm", "rank", "seed", "lr"), cell.key, strict=True)),
        "best_epoch": fitted.best.epoch,
        "val_accuracy": fitted.best.val_accuracy,
        "val_loss": fitted.best.val_loss,
    }
    if not cell.tuning:
        counted = convpeft.count(model)
        line |= {
            "trainable": counted.trainable,
            "base_parameters": counted.base,
            "layers": counted.layers,
            "adapter_bytes": _stored_bytes(model, dataset),
            **_measure_target(model, dataset),
            **_measure_retention(model, setting, from_base=recipe.model.weights is not None),
        }
    return line | {"seconds": round(time.perf_counter() - began, 2)}


def describe_target(setting: Setting, target: str) -> dict[str, Any]:
    """The line of the results that says what a target is."""
    dataset = load_data(setting.source(target), limit=setting.grid["data"]["limit"])
    val = load_data(setting.source(target), val_fraction=setting.grid["data"]["val_fraction"]).val
    sizes = {"train": len(dataset.train), "val": len(val), "test": len(dataset.test)}
    return {
        "kind": "target",
        "target": target,
        "classes": list(dataset.classes),
        "images": sizes,
        "edge": _EDGE,
        "ink_at_edge": _ink_at_edge(dataset),
    }


def _ink_at_edge(dataset: Dataset) -> list[float]:
    """Share of the test images of each class with ink in the outermost pixels: how they were cut out."""
    inner = slice(_EDGE, -_EDGE)
    touched = np.empty(len(dataset.test), dtype=bool)
    for index in range(len(dataset.test)):
        pixels = dataset.test.images[index].astype(np.int64)
        touched[index] = pixels.sum() > pixels[inner, inner].sum()
    return [float(touched[dataset.test.labels == label].mean()) for label in range(len(dataset.classes))]


def _recipe(setting: Setting, cell: Cell) -> Recipe:
    arm = next(arm for arm in setting.grid["arms"] if arm["name"] == cell.arm)
    start = {"pretrained": False} if arm.get("random_start") else {"weights": str(setting.weights)}
    return make_recipe(
        {
            "model": {"source": "small-cnn"} | start,
            "data": {"source": setting.source(cell.target)} | setting.grid["data"],
            "method": arm["method"] | ({} if cell.rank is None else {"rank": cell.rank}),
            "train": setting.grid["train"] | {"lr": cell.lr, "seed": cell.seed},
        }
    )


def _load(weights: str | Path | None) -> nn.Module:
    """The base, with its kernels in the order that a CPU is quickest with."""
    model = load_model("small-cnn", weights=weights, pretrained=weights is not None)
    return model.to(memory_format=torch.channels_last)


_KEPT: dict[tuple[str, int], Dataset] = {}


def _dataset(source: str, recipe: Recipe) -> Dataset:
    """The images of a target and seed; the last two are kept, as neighbouring cells ask for the same."""
    key = (source, recipe.train.seed)
    if key not in _KEPT:
        if len(_KEPT) > 1:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = load_recipe_data(recipe)
    return _KEPT[key]


def _stored_bytes(model: nn.Module, dataset: Dataset) -> int:
    with tempfile.TemporaryDirectory() as folder:
        saved = convpeft.save(model, Path(folder) / "adapter", classes=dataset.classes)
        return sum(file.stat().st_size for file in saved.iterdir())


def _measure_target(model: nn.Module, dataset: Dataset) -> dict[str, Any]:
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    predictions = predict_logits(model, ImageBatches(dataset.test, preprocessing, batch_size=_BATCH))
    metrics = classification_metrics(predictions.probabilities, predictions.labels, dataset.classes)
    return {
        "test_accuracy": metrics.accuracy,
        "macro_f1": metrics.macro_f1,
        "confusion": metrics.confusion.tolist(),
    }


def _measure_retention(model: nn.Module, setting: Setting, *, from_base: bool) -> dict[str, Any]:
    """The base's own test images: with the adapter off, and with the old head on the adapted features."""
    if not from_base:
        return {"off_identical": None, "old_head_accuracy": None}
    every, some, expected = _base_answers(setting)
    with convpeft.disabled(model):
        off = predict_logits(model, some)
    with old_head(model):
        on = predict_logits(model, every)
    return {"off_identical": is_retained(expected, off.logits), "old_head_accuracy": float(on.correct.mean())}


@functools.cache
def _base_of(source: str, weights: Path, images: int) -> tuple[ImageBatches, ImageBatches, Any]:
    base = _load(weights)
    preprocessing = preprocessing_of(base)
    assert preprocessing is not None
    test = load_data(source).test
    some = ImageBatches(test.subset(np.arange(min(images, len(test)))), preprocessing, batch_size=_BATCH)
    return ImageBatches(test, preprocessing, batch_size=_BATCH), some, predict_logits(base, some).logits


def _base_answers(setting: Setting) -> tuple[ImageBatches, ImageBatches, Any]:
    grid = setting.grid
    return _base_of(setting.source(grid["base_data"]), setting.weights, grid["identity_images"])
