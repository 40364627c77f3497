"""The batches that a run trains on: cached features where it has a prefix that is computed once, else images."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.errors import RunError
from convpeft.training.checkpoints import read_checkpoint
from convpeft.training.engine import Batch, Batches
from convpeft.training.features import (
    FOLDER,
    CannotKeep,
    FeatureBatches,
    Maker,
    Told,
    Unusable,
    Wanted,
    drop_features,
    has_facts,
    map_features,
    read_features,
    write_features,
)
from convpeft.training.history import Foreteller, Watcher
from convpeft.training.prefix import HALF, is_over
from convpeft.training.preparing import Prepared
from convpeft.training.processes import on_cpu
from convpeft.training.splitting import Halves, running


@dataclass
class Served:
    """Batches to train and validate on, and what is to be said of them."""

    train: Batches
    val: Iterable[Batch]
    notes: list[str] = field(default_factory=list[str])


@contextmanager
def serve(
    prepared: Prepared, out: Path, last: Path, *, resume: bool, watcher: Watcher | None = None
) -> Generator[Served]:
    """Give the batches of a run; within the block the model takes them as they are, features or images.

    Features stay on the disk when the block is left by an error or a signal, for the run to go on, and go when it ends.

    Args:
        prepared: What is to be trained.
        out: The run's directory.
        last: Its newest checkpoint's directory.
        resume: Whether the run goes on.
        watcher: Is told of the features that are done, if it listens.

    Raises:
        RunError: If the recipe demands features and they cannot be kept.
    """
    recipe, model, prefix, batches = prepared.recipe, prepared.model, prepared.prefix, prepared.batches
    plain = Served(batches["train"], batches["val"])
    found = read_checkpoint(last) if resume and prefix is not None else None
    if prefix is None or (found is not None and is_over(found, recipe.train)):
        yield plain
        return
    folder, halves = out / FOLDER, prefix.halves
    views = {"train": prefix.views, "val": 1} if halves.evaluates else {"train": prefix.views}
    wanted = {name: Wanted(batches[name], _labels(prepared, name), number) for name, number in views.items()}
    maker = Maker(model, halves, _device(), HALF[recipe.train.precision])
    model.to(maker.device)
    halves.to(maker.device)
    try:
        rows, notes = _rows(folder, wanted, _settings(prepared, maker), maker, watcher)
    except (CannotKeep, OSError) as error:
        drop_features(folder)
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        if recipe.train.prefix_cache == "on":
            raise RunError(f"{folder}: cannot be filled ({why}). Set train.prefix_cache='off'.") from None
        plain.notes.append(f"the prefix cache is not used after all: {why}. The run trains from the images.")
        yield plain
        return
    shaped = _may_turn(halves, maker.device, recipe.train.layout)
    served = {name: FeatureBatches(each, rows[name], halves, shaped=shaped) for name, each in wanted.items()}
    own = model.forward

    def forward(given: Tensor) -> Any:
        return halves.run_rest(given) if halves.evaluates or model.training else own(given)

    with running(model, forward):
        yield Served(served["train"], served.get("val", batches["val"]), notes)
    del rows, served
    drop_features(folder)


def _may_turn(halves: Halves, device: torch.device, layout: str) -> bool:
    """Whether the model may change the layout of features as it does that of images.

    Left to itself it takes channels_last on CPU. For the small maps behind a late cut that is slower (measured on one
    thread: 1.5 times for ResNet-18, 1.2 for ResNet-50), unless there are depthwise convolutions.
    """
    grouped = any(isinstance(each, nn.Conv2d) and each.groups > 1 for each in halves.rest.modules())
    return layout == "channels_last" or (layout == "auto" and (device.type != "cpu" or grouped))


def _labels(prepared: Prepared, split: str) -> Tensor:
    return torch.tensor(prepared.dataset.split(split).labels, dtype=torch.int64)


def _settings(prepared: Prepared, maker: Maker) -> dict[str, Any]:
    """Everything that the features depend on but the images, as plain values."""
    recipe = prepared.recipe
    augmented = recipe.data.augment != "none"
    return {
        "model": maker.digest(),
        "numbers": maker.halves.numbers,
        "preprocessing": prepared.preprocessing.to_dict(),
        "augmentation": [recipe.data.augment, recipe.train.prefix_views, recipe.train.seed if augmented else 0],
        "precision": recipe.train.precision,
        "torch": torch.__version__,
        "device": maker.device.type,
    }


def _rows(
    folder: Path, wanted: Mapping[str, Wanted], settings: dict[str, Any], maker: Maker, watcher: Watcher | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Rows that are there already, or new ones, and what is to be said of that."""
    notes: list[str] = []
    if has_facts(folder):
        try:
            return read_features(folder, wanted, settings, told=_teller(watcher, "checking features")), notes
        except Unusable as error:
            notes.append(f"{folder}: {error}. It was computed anew.")
    write_features(folder, wanted, settings, maker, told=_teller(watcher, "computing features"))
    return map_features(folder, wanted, maker.halves.numbers), notes


def _teller(watcher: Watcher | None, what: str) -> Told | None:
    if not isinstance(watcher, Foreteller):
        return None
    return lambda done, total: watcher.prepare(what, done, total)


def _device() -> torch.device:
    from accelerate import PartialState

    return cast(torch.device, PartialState(cpu=on_cpu()).device)
