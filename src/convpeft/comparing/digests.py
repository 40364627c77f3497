"""A digest of each split of a data set, so that a page can say on which images its figures were made."""

from __future__ import annotations

import hashlib

from convpeft.data import Dataset
from convpeft.data.datasets import ArrayImages, FileImages, Split


def data_digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of the images, ids and labels of each split, by its name; equal for equal content and order."""
    return {name: _digest(split, dataset.classes) for name, split in dataset.splits().items()}


def _digest(split: Split, classes: tuple[str, ...]) -> str:
    found = hashlib.sha256(repr((classes, split.ids)).encode())
    found.update(split.labels.tobytes())
    if isinstance(split.images, FileImages):
        for path in split.images.paths:
            found.update(hashlib.sha256(path.read_bytes()).digest())
    elif isinstance(split.images, ArrayImages):
        found.update(split.images.array.tobytes())
    else:
        for index in range(len(split)):
            found.update(split.images[index].tobytes())
    return found.hexdigest()
