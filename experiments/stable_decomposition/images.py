"""The images of the experiment: some choose, some restore, and the test images only judge."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from plan import CIFAR, GENERATED, IMAGENET, SQUEEZENET, TUNING_SEED, Budget

from convpeft.data import Split, load_data, read_image
from convpeft.data.datasets import FileImages


@dataclass(frozen=True)
class Images:
    """What one network sees with one seed.

    Args:
        choosing: Chooses ranks, and in restoring the epoch.
        test: Judges.
        classes: How many there are.
        restore_on: An .npz file with the restoring and the choosing images, and as many of the test images as the
            format needs, ten, at which nobody looks; None where nothing is restored.
    """

    choosing: Split
    test: Split
    classes: int
    restore_on: Path | None


def images_for(network: str, root: Path | None, budget: Budget, seed: int, work: Path) -> Images:
    """The images of a network and a seed; what has to lie on disk goes to `work`."""
    if network == SQUEEZENET:
        assert root is not None
        choosing, test = _imagenet_halves(root, budget, seed)
        return Images(choosing, test, 1000, None)
    source = GENERATED if network == GENERATED else CIFAR
    file = work / f"{source}-{seed}.npz"
    if not file.is_file():
        _write(file, _glyphs() if source == GENERATED else _pictures(root), budget, seed)
    dataset = load_data(f"npz:{file}")
    restore_on = file.with_stem(f"{file.stem}-restoring")
    with np.load(file) as arrays:
        np.savez(restore_on, **{key: x[:10] if key.startswith("test") else x for key, x in arrays.items()})
    return Images(dataset.val, dataset.test, len(dataset.classes), restore_on)


def digests(images: Images) -> dict[str, str]:
    """SHA-256 of pixels and labels of each part, in order."""
    parts = {"choosing": images.choosing, "test": images.test}
    if images.restore_on is not None:
        parts["restoring"] = load_data(f"npz:{images.restore_on}").train
    return {name: _digest(split) for name, split in parts.items()}


Pool = dict[str, list[list[Any]]]  # by split, for each class its images, as files or arrays


def _pictures(root: Path | None) -> tuple[list[str], Pool]:
    assert root is not None
    classes = sorted(each.name for each in (root / CIFAR / "train").iterdir() if each.is_dir())
    return classes, {
        split: [sorted((root / CIFAR / split / name).iterdir()) for name in classes] for split in ("train", "test")
    }


def _glyphs() -> tuple[list[str], Pool]:
    dataset = load_data("glyphs:digits")
    pool = {
        name: [
            [split.images[i] for i in np.flatnonzero(split.labels == label)] for label in range(len(dataset.classes))
        ]
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    return list(dataset.classes), pool


def _write(path: Path, source: tuple[list[str], Pool], budget: Budget, seed: int) -> None:
    """Draw the parts, as many of each class; the seeds' test images are slices of one order, so none is in two."""
    classes, pool = source
    count, rng = len(classes), np.random.default_rng(seed)
    place = (*budget.seeds, TUNING_SEED).index(seed)
    choosing, training, testing = (each // count for each in (budget.choosing, budget.training, budget.testing))
    parts: dict[str, list[tuple[Any, int]]] = {"train": [], "val": [], "test": []}
    for label in range(count):
        own, tested = pool["train"][label], pool["test"][label]
        drawn = [own[i] for i in rng.permutation(len(own))[: choosing + training]]
        parts["val"] += [(each, label) for each in drawn[:choosing]]
        parts["train"] += [(each, label) for each in drawn[choosing:]]
        order = np.random.default_rng(label).permutation(len(tested))
        turn = place % (len(tested) // testing)
        parts["test"] += [(tested[i], label) for i in order[turn * testing : (turn + 1) * testing]]
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for split, each in parts.items():
        arrays[f"{split}_images"] = np.stack([x if isinstance(x, np.ndarray) else read_image(x) for x, _ in each])
        arrays[f"{split}_labels"] = np.array([label for _, label in each])
    np.savez(path, **arrays)


def _imagenet_halves(root: Path, budget: Budget, seed: int) -> tuple[Split, Split]:
    """One image a class: some of a random half choose, the other half judges."""
    files = sorted((root / IMAGENET).glob("*.jpg"))
    order = np.random.default_rng(seed).permutation(len(files))
    half = len(files) // 2
    parts = (np.sort(order[:half][: budget.choosing_imagenet]), np.sort(order[half:]))
    whole = Split(FileImages(tuple(files)), np.arange(len(files)), tuple(file.name for file in files))
    return whole.subset(parts[0]), whole.subset(parts[1])


def _digest(split: Split) -> str:
    total = hashlib.sha256()
    for index in range(len(split)):
        total.update(split.images[index].tobytes())
    total.update(split.labels.astype(np.int64).tobytes())
    return total.hexdigest()
