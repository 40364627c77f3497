"""The images of the experiment: some choose, some restore, and the test images only judge."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from plan import CIFAR, IMAGENET, Budget

from convpeft.data import Split, read_image
from convpeft.data.datasets import FileImages


def write_cifar(root: Path, path: Path, budget: Budget, seed: int) -> None:
    """Write an .npz file: train to restore with, val to choose with, both of the training split, and test."""
    classes = sorted(each.name for each in (root / CIFAR / "train").iterdir() if each.is_dir())
    rng = np.random.default_rng(seed)
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    count = len(classes)
    for label, name in enumerate(classes):
        files = sorted((root / CIFAR / "train" / name).iterdir())
        drawn = [files[i] for i in rng.permutation(len(files))[: (budget.choosing + budget.training) // count]]
        parts["val"] += [(file, label) for file in drawn[: budget.choosing // count]]
        parts["train"] += [(file, label) for file in drawn[budget.choosing // count :]]
        tested = sorted((root / CIFAR / "test" / name).iterdir())[: budget.testing // count]
        parts["test"] += [(file, label) for file in tested]
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for split, files in parts.items():
        arrays[f"{split}_images"] = np.stack([read_image(file) for file, _ in files])
        arrays[f"{split}_labels"] = np.array([label for _, label in files])
    np.savez(path, **arrays)


def imagenet_halves(root: Path, budget: Budget, seed: int) -> tuple[Split, Split]:
    """One image a class: some of a random half choose, the other half judges."""
    files = sorted((root / IMAGENET).glob("*.jpg"))
    order = np.random.default_rng(seed).permutation(len(files))
    half = len(files) // 2
    parts = (np.sort(order[:half][: budget.choosing_imagenet]), np.sort(order[half:]))
    whole = Split(FileImages(tuple(files)), np.arange(len(files)), tuple(file.name for file in files))
    return whole.subset(parts[0]), whole.subset(parts[1])


def digest(*splits: Split) -> str:
    """SHA-256 of pixels and labels, in order."""
    total = hashlib.sha256()
    for split in splits:
        for index in range(len(split)):
            total.update(split.images[index].tobytes())
        total.update(split.labels.tobytes())
    return total.hexdigest()
