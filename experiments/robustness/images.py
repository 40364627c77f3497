"""Lay out the folder that a grid is run in: images.npz, drawn from a data set, and base.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plan import Transfer

from convpeft.data import Split, load_data
from convpeft.data.splits import choose_per_class

IMAGES, BASE = "images.npz", "base.safetensors"
_SEED = 0  # of which images a smaller budget takes


def lacking(task: Transfer, data: Path) -> list[str]:
    """What the task needs and the folder does not hold."""
    found = [name for name in task.needs if not (data / name).exists()]
    if task.weights and not any((data / name).is_file() for name in task.weights):
        found += [name for name in task.weights[:1] if name not in found]
    return found


def weights_of(task: Transfer, data: Path) -> str:
    """The name of the file that the base's weights are from; "" for a random start."""
    found = [name for name in task.weights if (data / name).is_file()]
    return Path(found[0]).stem if found else ""


def lay_out(task: Transfer, data: Path, folder: Path) -> None:
    """Write the two files, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if task.weights and not (folder / BASE).is_file():
        from safetensors.torch import save_file

        from convpeft.models.weights import read_weights

        name = next(name for name in task.weights if (data / name).is_file())
        save_file(read_weights(data / name), folder / BASE)
    if not (folder / IMAGES).is_file():
        dataset = load_data(task.images.format(data=data.resolve()))
        train, _ = _drawn(dataset.train, task.train_per_class, task.size)
        test, numbers = _drawn(dataset.test, task.test_per_class, task.size)
        parts = {"train": train, "test": test}
        arrays = {f"{name}_{key}": array for name, part in parts.items() for key, array in part.items()}
        unfinished = folder / f"unfinished-{IMAGES}"
        np.savez(unfinished, classes=np.array(dataset.classes), test_numbers=numbers, **arrays)
        unfinished.replace(folder / IMAGES)


def read_test(folder: Path) -> Mapping[str, NDArray[Any]]:
    """The test images, their labels, and their numbers in the data set that they are drawn from."""
    with np.load(folder / IMAGES) as held:
        return {key: held[f"test_{key}"] for key in ("images", "labels", "numbers")}


def _drawn(split: Split, per_class: int | None, size: int | None) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """So many images of each class, always the same, and their numbers in the split."""
    everything = np.arange(len(split))
    numbers = everything if per_class is None else choose_per_class(split.labels, per_class, seed=_SEED)
    images = np.stack([_resized(split.images[int(number)], size) for number in numbers])
    return {"images": images, "labels": split.labels[numbers]}, numbers


def _resized(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    if size is None:
        return image
    return np.asarray(Image.fromarray(image.squeeze()).convert("RGB").resize((size, size)))
