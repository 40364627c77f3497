"""One run: adapt the base, train it, and measure what it learned and what is left of the source."""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import draw, source_data, target_data
from numpy.typing import NDArray
from plan import ARMS, COEFFICIENTS, Transfer
from torch import nn

import convpeft
from convpeft.data import ImageBatches, Split
from convpeft.evaluation import agreement, features_of, is_retained, predict_logits, probe_accuracy
from convpeft.models import Preprocessing, load_model, preprocessing_of
from convpeft.training.loop import fit
from convpeft.training.preparing import adapt
from convpeft.training.recipe import Recipe, make_recipe

_BATCH = 64  # for everything that is only looked at


@dataclass(frozen=True)
class Setting:
    """What all runs share: the folder with the data, and where the bases are that were trained here."""

    root: str
    work: Path

    def weights(self, transfer: Transfer) -> str:
        """The file with the base's weights."""
        return str(
            Path(self.root) / transfer.weights if transfer.weights else self.work / f"{transfer.name}.safetensors"
        )


@dataclass(frozen=True)
class Cell:
    """What to train; with `tuning` neither test split nor source is touched."""

    tuning: bool
    transfer: Transfer
    arm: str
    fraction: float
    epochs: int
    seed: int
    lr: float
    between: bool = False  # also what lies between the base and this network, for WiSE-FT

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one run from another in the results."""
        return ("tune" if self.tuning else "run", self.transfer.name, self.arm, self.fraction, self.seed, self.lr)


KEYS = ("kind", "transfer", "arm", "fraction", "seed", "lr")


def use_one_thread() -> None:
    """Processes share the cores; one thread each makes sums the same whatever runs beside."""
    torch.set_num_threads(1)


def run_cell(setting: Setting, cell: Cell) -> dict[str, Any]:
    """Make one run and return its line of the results."""
    began = time.perf_counter()
    recipe, transfer = _recipe(setting, cell), cell.transfer
    data = target_data(transfer, setting.root, cell.seed)
    train = draw(data.train, round(cell.fraction * len(data.train)), cell.seed)
    torch.manual_seed(cell.seed)
    model, preprocessing = build(setting, transfer)
    adapt(model, recipe, len(data.classes))
    served = ImageBatches(
        train,
        preprocessing,
        batch_size=transfer.batch_size,
        shuffle=True,
        seed=cell.seed,
        drop_last=len(train) > transfer.batch_size and len(train) % transfer.batch_size == 1,
    )
    val = ImageBatches(data.val, preprocessing, batch_size=_BATCH)
    fitted = fit(model, served, val, recipe.train)
    model.eval()
    line: dict[str, Any] = {
        **dict(zip(KEYS, cell.key, strict=True)),
        "train_images": len(train),
        "best_epoch": fitted.best.epoch,
        "val_accuracy": fitted.best.val_accuracy,
        "val_loss": round(fitted.best.val_loss, 6),
    }
    if not cell.tuning:
        counted = convpeft.count(model)
        test = ImageBatches(data.test, preprocessing, batch_size=_BATCH)
        line |= {"trainable": counted.trainable, "test_images": len(data.test)}
        line |= {"test_accuracy": float(predict_logits(model, test).correct.mean())}
        line |= measure_source(model, setting, transfer, probe=True)
        if cell.between:
            line["wise"] = [_between(model, share, val, test, setting, transfer) for share in COEFFICIENTS]
    return line | {"seconds": round(time.perf_counter() - began, 2)}


def build(setting: Setting, transfer: Transfer) -> tuple[nn.Module, Preprocessing]:
    """The base, and how its images are prepared."""
    model = load_model(transfer.network, weights=setting.weights(transfer))
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    if (pixels := transfer.image_size) is not None:
        preprocessing = dataclasses.replace(preprocessing, size=(pixels, pixels))
    return model, preprocessing


def measure_source(model: nn.Module, setting: Setting, transfer: Transfer, *, probe: bool) -> dict[str, Any]:
    """What is left of the source: adapter off, adapter on under the old head, and under a newly fitted one."""
    base = base_answers(setting, transfer)
    with convpeft.disabled(model):
        off = predict_logits(model, base.some)
    with convpeft.old_head(model):
        on = predict_logits(model, base.test)
        left = None
        if probe and base.fit is not None:
            left = probe_accuracy(*features_of(model, base.fit), *features_of(model, base.test))
    return {
        "off_identical": is_retained(base.logits[: len(off.logits)], off.logits),
        "source_accuracy": float(on.correct.mean()),
        "source_agreement": agreement(on.predicted, base.predicted),
        "probe_accuracy": left,
    }


@dataclass(frozen=True)
class Base:
    """What the base itself answers to the source's images."""

    test: ImageBatches
    some: ImageBatches
    fit: ImageBatches | None
    logits: NDArray[np.float32]
    predicted: NDArray[np.int64]
    accuracy: float
    probe_accuracy: float | None


def base_answers(setting: Setting, transfer: Transfer) -> Base:
    """The base's answers, computed once in a process."""
    return _base_answers(setting, transfer)


@functools.lru_cache(maxsize=2)
def _base_answers(setting: Setting, transfer: Transfer) -> Base:
    model, preprocessing = build(setting, transfer)
    test, fitting = source_data(transfer, setting.root)

    def serve(split: Split) -> ImageBatches:
        return ImageBatches(split, preprocessing, batch_size=_BATCH)

    served, some = serve(test), serve(test.subset(np.arange(min(transfer.identity, len(test)))))
    answers = predict_logits(model, served)
    fit_on = None if fitting is None else serve(fitting)
    left = None if fit_on is None else probe_accuracy(*features_of(model, fit_on), *features_of(model, served))
    return Base(served, some, fit_on, answers.logits, answers.predicted, float(answers.correct.mean()), left)


def _between(
    model: nn.Module, share: float, val: ImageBatches, test: ImageBatches, setting: Setting, transfer: Transfer
) -> dict[str, Any]:
    """WiSE-FT: the network between the base and the fine-tuned one."""
    twin = convpeft.interpolated(model, share)
    return {
        "coefficient": share,
        "val_accuracy": float(predict_logits(twin, val).correct.mean()),
        "test_accuracy": float(predict_logits(twin, test).correct.mean()),
        **measure_source(twin, setting, transfer, probe=False),
    }


def _recipe(setting: Setting, cell: Cell) -> Recipe:
    arm = ARMS[cell.arm]
    return make_recipe(
        {
            "model": {"source": cell.transfer.network, "weights": setting.weights(cell.transfer)},
            "data": {"source": cell.transfer.target.format(root=setting.root)},
            "method": dict(arm.method),
            "train": {
                "epochs": cell.epochs,
                "batch_size": cell.transfer.batch_size,
                "lr": cell.lr,
                "seed": cell.seed,
                **arm.train,
            },
        }
    )
