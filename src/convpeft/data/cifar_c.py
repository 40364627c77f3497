"""The published files of CIFAR-10-C and CIFAR-100-C, mapped into memory and read where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from convpeft.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from convpeft.data.corruptions.names import ALL, SEVERITIES
from convpeft.data.datasets import Parts, Split
from convpeft.data.npz import read_header
from convpeft.data.quoting import reason
from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IMAGE = (32, 32, 3)
_MAX_LABEL_BYTES = 16 << 20


@dataclass(frozen=True)
class MappedImages:
    """Some of the images of several files of equal length, which stay on the disk until they are asked for."""

    arrays: tuple[NDArray[np.uint8], ...]
    places: NDArray[np.int64]  # counted through all files, one after the other

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        file, row = divmod(int(self.places[index]), len(self.arrays[0]))
        return np.array(self.arrays[file][row])

    def subset(self, indices: NDArray[np.int64], /) -> Self:
        """Return the images at these positions, in this order."""
        return type(self)(self.arrays, self.places[indices])

    def join(self, others: Sequence[Self], /) -> Self:
        """Return these images and those of others of the same files after them."""
        return type(self)(self.arrays, np.concatenate([self.places, *(other.places for other in others)]))


@dataclass(frozen=True)
class CifarC:
    """A folder of files, one a corruption; severity s has the rows (s - 1) * count to s * count.

    Attributes:
        spec: What a user writes for it.
        names: The corruptions there is a file of, in the order of `ALL`.
        classes: Class names of CIFAR-10 or, where a label is above 9, CIFAR-100.
        count: Images of one severity.
    """

    spec: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    count: int
    arrays: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.int64]  # of all severities

    def split(self, name: str, severity: int) -> Split:
        """The images of one severity of one corruption.

        Raises:
            DataError: If there is no file of that corruption.
        """
        if name not in self.names:
            raise DataError(
                f"data '{self.spec}': has no file {name}.npy. It has {', '.join(self.names)}: leave the others out."
            )
        rows = np.arange((severity - 1) * self.count, severity * self.count)
        array = self.arrays[self.names.index(name)]
        return Split(MappedImages((array,), rows), self.labels[rows], self._ids(name, severity))

    def whole(self) -> Split:
        """All images of all files."""
        ids = [self._ids(name, severity) for name in self.names for severity in SEVERITIES]
        places = np.arange(len(self.arrays) * len(self.labels))
        return Split(
            MappedImages(self.arrays, places), np.tile(self.labels, len(self.arrays)), tuple(i for j in ids for i in j)
        )

    def _ids(self, name: str, severity: int) -> tuple[str, ...]:
        return tuple(f"{name}/{severity}/{number}" for number in range(self.count))


def load_cifar_c(root: Path) -> Parts:
    """All images of the files of a folder, as one test split.

    Raises:
        DataError: If files are missing, damaged or of another form.
    """
    files = open_cifar_c(root)
    note = f"test: {files.count:,} images in {len(SEVERITIES)} severities of {', '.join(files.names)}, read from files"
    return Parts(files.classes, {"test": files.whole()}, (note,))


def open_cifar_c(root: Path) -> CifarC:
    """Find the files NAME.npy, uint8 (5 * count, 32, 32, 3), and labels.npy in a folder, and check their headers.

    Raises:
        DataError: If files are missing, damaged or of another form.
    """
    spec = f"cifar-c:{root}"
    names = tuple(name for name in ALL if (root / f"{name}.npy").is_file())
    if not names or not (root / "labels.npy").is_file():
        raise DataError(
            f"data '{spec}': holds no labels.npy with files such as fog.npy. "
            "Unpack the archive CIFAR-10-C.tar or CIFAR-100-C.tar and give the folder in it."
        )
    labels = _labels(root / "labels.npy")
    arrays = tuple(_map(root / f"{name}.npy", len(labels)) for name in names)
    classes = CIFAR10_CLASSES if labels.max() < len(CIFAR10_CLASSES) else CIFAR100_CLASSES
    return CifarC(spec, names, classes, len(labels) // len(SEVERITIES), arrays, labels)


def _labels(path: Path) -> NDArray[np.int64]:
    size = path.stat().st_size
    if size > _MAX_LABEL_BYTES:
        raise DataError(f"data '{path}': has {size:,} bytes, too many for labels of CIFAR. Get the file again.")
    shape, dtype, start = _header(path)
    if dtype.kind not in "iu" or len(shape) != 1 or shape[0] < 1 or shape[0] % len(SEVERITIES):
        raise DataError(
            f"data '{path}': is {dtype} {shape}, expected whole numbers, one an image of five severities. "
            "Get the file again."
        )
    _check_length(path, shape, dtype, start)
    with path.open("rb") as handle:
        handle.seek(start)
        labels = np.frombuffer(handle.read(shape[0] * dtype.itemsize), dtype=dtype)
    if int(labels.min()) < 0 or int(labels.max()) >= len(CIFAR100_CLASSES):
        raise DataError(
            f"data '{path}': holds labels from {labels.min()} to {labels.max()}, CIFAR's are 0 to 9 or 0 to 99. "
            "Get the file again."
        )
    labels = labels.astype(np.int64)
    first = labels.reshape(len(SEVERITIES), -1)  # (severities, count)
    if (first != first[0]).any():
        raise DataError(f"data '{path}': the five severities have not the same labels. Get the file again.")
    return labels


def _map(path: Path, count: int) -> NDArray[np.uint8]:
    shape, dtype, start = _header(path)
    if dtype != np.uint8 or shape != (count, *_IMAGE):
        raise DataError(
            f"data '{path}': is {dtype} {shape}, expected uint8 {(count, *_IMAGE)} by its labels.npy. "
            "Get the file again."
        )
    _check_length(path, shape, dtype, start)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and where the numbers begin; never anything that is no plain numbers."""
    try:
        with path.open("rb") as handle:
            shape, fortran, dtype = read_header(handle)
            start = handle.tell()
    # A damaged header raises errors of many kinds: ValueError, EOFError, SyntaxError, RecursionError, ...
    except Exception as error:
        raise DataError(f"data '{path}': is no .npy file ({reason(error)}). Get the file again.") from error
    if fortran or dtype.hasobject:
        raise DataError(f"data '{path}': holds Python objects or columns first. Get the published file again.")
    return shape, dtype, start


def _check_length(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], start: int) -> None:
    wanted, found = start + int(np.prod(shape, dtype=object)) * dtype.itemsize, path.stat().st_size
    if found != wanted:
        raise DataError(f"data '{path}': has {found:,} bytes, its header tells of {wanted:,}. Get the file again.")
