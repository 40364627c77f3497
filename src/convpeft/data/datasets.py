"""A data set: named classes and three splits of uint8 images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from convpeft.data.images import read_image
from convpeft.errors import OptionError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


class ImageStore(Protocol):
    """Images by position, each uint8 (height, width, channels), in memory or still on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...

    def subset(self, indices: NDArray[np.int64], /) -> Self:
        """Return the images at these positions, in this order."""
        ...

    def join(self, others: Sequence[Self], /) -> Self:
        """Return these images and those of other stores of the same kind after them."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size in one uint8 array (count, height, width, channels)."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return self.array[index]

    def subset(self, indices: NDArray[np.int64], /) -> Self:
        """Return the images at these positions, in this order."""
        return type(self)(self.array[indices])

    def join(self, others: Sequence[Self], /) -> Self:
        """Return these images and those of others after them."""
        return type(self)(np.concatenate([self.array, *(other.array for other in others)]))


@dataclass(frozen=True)
class FileImages:
    """Images that stay files until they are asked for."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return read_image(self.paths[index])

    def subset(self, indices: NDArray[np.int64], /) -> Self:
        """Return the images at these positions, in this order."""
        return type(self)(tuple(self.paths[i] for i in indices))

    def join(self, others: Sequence[Self], /) -> Self:
        """Return these images and those of others after them."""
        return type(self)((*self.paths, *(path for other in others for path in other.paths)))


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Args:
        images: The pictures.
        labels: int64 (count,), positions in the data set's classes.
        ids: A name for each picture: its path below the root, or "train/123".
        groups: What must not be torn apart by a split (a patient, a writer), or None.
    """

    images: ImageStore
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: NDArray[np.int64]) -> Split:
        """Return the part of this split at these positions, in this order."""
        return Split(
            images=self.images.subset(indices),
            labels=self.labels[indices],
            ids=tuple(self.ids[i] for i in indices),
            groups=None if self.groups is None else tuple(self.groups[i] for i in indices),
        )

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many images each class has, int64 (num_classes,)."""
        return np.bincount(self.labels, minlength=num_classes).astype(np.int64)


@dataclass(frozen=True)
class Dataset:
    """Everything a run needs to know about its data.

    Args:
        spec: What `load_data` was asked for.
        classes: Class names; a label is a position in them.
        train: What is trained on.
        val: What decisions are made on: early stopping, learning rates.
        test: What results are reported on, and nothing else.
        notes: What a reader should know: how splits came to be, what was skipped.
        made: Splits that the source did not have and that were cut out of its training images.
    """

    spec: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    def splits(self) -> dict[str, Split]:
        """Return the three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def split(self, name: str) -> Split:
        """Return a split by its name; "all" is train, then val, then test.

        Raises:
            OptionError: If there is no such split.
        """
        if name in self.splits():
            return self.splits()[name]
        if name != "all":
            raise OptionError(f"split={name!r} does not exist. {nearest(name, [*self.splits(), 'all'])}")
        parts = tuple(self.splits().values())
        return Split(
            images=parts[0].images.join([part.images for part in parts[1:]]),
            labels=np.concatenate([part.labels for part in parts]),
            ids=tuple(each for part in parts for each in part.ids),
        )


@dataclass(frozen=True)
class Parts:
    """What a source found: splits may be missing still, and a "pool" is to be cut into all three."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()


def array_split(name: str, images: NDArray[np.uint8], labels: Sequence[int] | NDArray[np.int64]) -> Split:
    """Make a split of images in memory, with the ids "name/0", "name/1", and so on."""
    if images.ndim == 3:
        images = images[..., None]
    ids = tuple(f"{name}/{i}" for i in range(len(images)))
    return Split(ArrayImages(images), np.asarray(labels, dtype=np.int64), ids)
