"""One run: adapt the network, train it, and measure it once on the test split."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plan import Task
from torch import nn

import convpeft
from convpeft.data import Dataset, ImageBatches
from convpeft.data.datasets import Split
from convpeft.evaluation import classification_metrics, predict_logits
from convpeft.models import Preprocessing, load_model, preprocessing_of
from convpeft.training.loop import fit
from convpeft.training.preparing import adapt, batches, load_recipe_data
from convpeft.training.recipe import Recipe, make_recipe

Extra = Mapping[str, Mapping[str, Any]]

_STREAM = 4  # of the draw of so many images a class, so that it shares no number with another draw of the seed


def measure_run(task: Task, root: Path, entry: str, extra: Extra, seed: int) -> dict[str, Any]:
    """Make one run and return its line of the results."""
    recipe = make_recipe(task.recipe(root, extra, seed))
    dataset, served = _serve(task, root, seed)
    began = time.perf_counter()
    model, _ = build(recipe, classes=len(dataset.classes))
    fitted = fit(model, served["train"], served["val"], recipe.train)
    model.eval()
    predictions = predict_logits(model, served["test"])
    test = classification_metrics(predictions.probabilities, predictions.labels, dataset.classes)
    counted = convpeft.count(model)
    return {
        "entry": entry,
        "extra": {section: dict(values) for section, values in extra.items()},
        "seed": seed,
        "learning_rate": recipe.train.lr or convpeft.method_info(recipe.method.name).learning_rate,
        "train_loss": fitted.history[-1].train_loss,
        "train_losses": [round(row.train_loss, 4) for row in fitted.history],
        "best_epoch": fitted.best.epoch,
        "val_accuracy": fitted.best.val_accuracy,
        "test_images": test.n,
        "test_accuracy": test.accuracy,
        "test_interval": list(test.accuracy_interval),
        "auc": test.macro_auc,
        "trainable": counted.trainable,
        "base_parameters": counted.base,
        "adapter_bytes": _stored_bytes(model, dataset),
        "seconds": round(time.perf_counter() - began, 1),
    }


def build(recipe: Recipe, *, classes: int) -> tuple[nn.Module, Preprocessing]:
    """The adapted network, as a training run from the command line builds it."""
    torch.manual_seed(recipe.train.seed)
    model = load_model(recipe.model.source, weights=recipe.model.weights)
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    if (pixels := recipe.model.image_size) is not None:
        preprocessing = dataclasses.replace(preprocessing, size=(pixels, pixels))
    adapt(model, recipe, classes)
    return model, preprocessing


@functools.lru_cache(maxsize=4)
def _serve(task: Task, root: Path, seed: int) -> tuple[Dataset, dict[str, ImageBatches]]:
    """The images of a seed and their batches, the same for every method."""
    recipe = make_recipe(task.recipe(root, {"method": {"name": "probe"}}, seed))
    whole = load_recipe_data(recipe)
    dataset = dataclasses.replace(
        whole, train=draw(whole.train, task.train_each, seed=seed), val=draw(whole.val, task.val_each, seed=seed)
    )
    _, preprocessing = build(recipe, classes=len(dataset.classes))
    return dataset, {name: batches(dataset, name, preprocessing, recipe) for name in dataset.splits()}


def draw(split: Split, each: int | None, *, seed: int) -> Split:
    """So many images of every class; all of them for None."""
    if each is None:
        return split
    rng = np.random.default_rng([seed, _STREAM])
    members = [np.flatnonzero(split.labels == label) for label in np.unique(split.labels)]
    return split.subset(np.sort(np.concatenate([rng.permutation(found)[:each] for found in members])))


def _stored_bytes(model: nn.Module, dataset: Dataset) -> int:
    with tempfile.TemporaryDirectory() as folder:
        saved = convpeft.save(model, Path(folder) / "adapter", classes=dataset.classes)
        return sum(file.stat().st_size for file in saved.iterdir())
