"""Read an .npz file of the MedMNIST form: train_images, train_labels, and the same for val and test."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy_format

from convpeft.data.datasets import SPLITS, Parts, Split, array_split
from convpeft.data.limits import check_expansion, check_packing
from convpeft.data.quoting import check_names, reason
from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_HEADER_BYTES = 4096
_MAX_LABEL = 2**53  # what a float holds exactly; labels beyond it are damage


def load_npz(path: Path) -> Parts:
    """Read SPLIT_images (count, height, width[, channels]) uint8 and SPLIT_labels (count,) or (count, 1).

    An entry `classes` names the classes by label; without it the labels found are their own names.

    Raises:
        DataError: If the file is missing, damaged, or of another form, or claims to unpack into far more than it holds.
    """
    where = f"data 'npz:{path}'"
    if not path.is_file():
        raise DataError(f"{where}: there is no such file. Give an .npz file of the MedMNIST form.")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read_arrays(where, archive, path.stat().st_size)
    except DataError:
        raise
    # A damaged archive raises errors of many kinds: BadZipFile, zlib.error, ValueError, NotImplementedError, ...
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({reason(error)}). Get the file again.") from error
    names = arrays.pop("classes", None)
    found = {split: _labels(where, split, arrays) for split in SPLITS if f"{split}_images" in arrays}
    if "train" not in found:
        raise DataError(
            f"{where}: has no train_images. Expected train_images, train_labels and the same for val, test."
        )
    values = sorted({int(v) for labels in found.values() for v in np.unique(labels)})
    classes = _classes(where, names, values)
    position = {value: (value if names is not None else i) for i, value in enumerate(values)}
    splits: dict[str, Split] = {}
    for split, labels in found.items():
        images = _images(where, split, arrays[f"{split}_images"], len(labels))
        splits[split] = array_split(split, images, [position[int(label)] for label in labels])
    return Parts(classes, splits)


def _read_arrays(where: str, archive: zipfile.ZipFile, stored: int) -> dict[str, NDArray[np.generic]]:
    wanted = {f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")} | {"classes.npy"}
    members = [info for info in archive.infolist() if info.filename in wanted]
    check_packing(where, members)
    check_expansion(where, sum(info.file_size for info in members), stored)
    arrays: dict[str, NDArray[np.generic]] = {}
    for info in members:
        with archive.open(info) as handle:
            shape, fortran, dtype = read_header(handle)
            count = int(np.prod(shape, dtype=object)) if shape else 1
            if dtype.hasobject:
                raise DataError(f"{where}: {info.filename} holds Python objects. Save it as plain numbers or text.")
            if min(shape, default=0) < 0 or count * dtype.itemsize > info.file_size:
                raise DataError(
                    f"{where}: {info.filename} claims shape {shape}, more than it holds. Get the file again."
                )
            content = handle.read(count * dtype.itemsize)
        array = np.frombuffer(content, dtype=dtype, count=count)
        arrays[info.filename.removesuffix(".npy")] = array.reshape(shape, order="F" if fortran else "C")
    return arrays


def read_header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether columns come first, and type, as the head of an .npy file tells them; a long head is refused."""
    version = npy_format.read_magic(handle)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(handle, max_header_size=_MAX_HEADER_BYTES)
    if version == (2, 0):
        return npy_format.read_array_header_2_0(handle, max_header_size=_MAX_HEADER_BYTES)
    raise ValueError(f"npy version {version}")


def _labels(where: str, split: str, arrays: dict[str, NDArray[np.generic]]) -> NDArray[np.int64]:
    labels = arrays.get(f"{split}_labels")
    if labels is None:
        raise DataError(f"{where}: has {split}_images but no {split}_labels. Add them.")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{where}: {split}_labels has shape {labels.shape}, several labels an image. "
            "Only one label an image is supported: keep one column."
        )
    labels = labels.reshape(-1)
    number = labels.dtype.kind in "iubf"
    exact = labels.astype(np.float64) if number else np.full(1, np.nan)
    if not np.array_equal(exact, np.rint(exact)):
        raise DataError(f"{where}: {split}_labels are {labels.dtype} with NaN or fractions, expected whole numbers.")
    if np.abs(exact).max(initial=0) > _MAX_LABEL:
        raise DataError(f"{where}: {split}_labels hold {np.abs(exact).max():g}, which is no label. Number the classes.")
    return labels.astype(np.int64)


def _classes(where: str, names: NDArray[np.generic] | None, values: list[int]) -> tuple[str, ...]:
    if names is None:
        return tuple(str(value) for value in values)
    told = _told(names)
    if told is None or len(set(told)) != len(told):
        raise DataError(f"{where}: classes is {names.dtype} {names.shape}, expected a list of distinct names as text.")
    check_names(where, told)
    if values and not (values[0] >= 0 and values[-1] < len(names)):
        raise DataError(
            f"{where}: labels run from {values[0]} to {values[-1]}, but classes has {len(names)} names. "
            "Add the missing names."
        )
    return told


def _told(names: NDArray[np.generic]) -> tuple[str, ...] | None:
    """The names as text; None where they are none."""
    if names.dtype.kind != "U" or names.ndim != 1:
        return None
    try:
        return tuple(str(name) for name in names)
    except (SystemError, ValueError):  # a number that is no character
        return None


def _images(where: str, split: str, images: NDArray[np.generic], count: int) -> NDArray[np.uint8]:
    good = images.dtype == np.uint8 and images.ndim in (3, 4) and 0 not in images.shape[1:]
    if not good or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{where}: {split}_images is {images.dtype} {images.shape}, expected uint8 (count, height, width) "
            "with 1, 3 or 4 channels last."
        )
    if len(images) != count:
        raise DataError(f"{where}: has {len(images):,} {split}_images but {count:,} {split}_labels. Make them agree.")
    return images.astype(np.uint8, copy=False)
