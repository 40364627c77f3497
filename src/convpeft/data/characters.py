"""MNIST and EMNIST, alone or together, from the official idx files, every character upright."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convpeft.data.datasets import ArrayImages, Parts, Split, array_split
from convpeft.data.downloads import PublicFile, cache_directory, fetch
from convpeft.data.idx import read_idx
from convpeft.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DIGITS = tuple("0123456789")
UPPER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LOWER = tuple("abcdefghijklmnopqrstuvwxyz")

_MNIST_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_FILES = {
    name: PublicFile(f"{_MNIST_ADDRESS}{name}.gz", md5, 16 << 20)
    for name, md5 in {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    }.items()
}
_EMNIST_FILE = PublicFile(
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e", 1 << 30
)
_MNIST_FOLDERS = ("", "raw", "MNIST/raw", "MNIST")
_EMNIST_FOLDERS = ("", "raw", "gzip", "EMNIST/raw", "EMNIST", "EMNIST/raw/gzip", "EMNIST/gzip")
_PACKINGS = ("", ".gz", ".xz")


@dataclass(frozen=True)
class _Variant:
    """One official cut of EMNIST: its class names, and the label of the first."""

    classes: tuple[str, ...]
    first_label: int = 0


EMNIST_VARIANTS = {
    # 1..26, upper and lower case merged.
    "letters": _Variant(UPPER, first_label=1),
    # The lower-case letters that look unlike their capitals.
    "balanced": _Variant((*DIGITS, *UPPER, *"abdefghnqrt")),
    "byclass": _Variant((*DIGITS, *UPPER, *LOWER)),
}


def load_mnist(root: Path | None) -> Parts:
    """Read MNIST; without a root from the cache, downloading what is not there."""
    if root is None:
        folder = cache_directory() / "MNIST" / "raw"
        for name, file in _MNIST_FILES.items():
            if _find(folder, ("",), name) is None:
                fetch(file, folder)
        root = folder
    elif not root.is_dir():
        raise DataError(f"data 'mnist:{root}': there is no such folder. Give one that holds MNIST/raw.")
    splits = {
        split: _read_split(
            split,
            _require(root, _MNIST_FOLDERS, f"{stem}-images-idx3-ubyte", "mnist:"),
            _require(root, _MNIST_FOLDERS, f"{stem}-labels-idx1-ubyte", "mnist:"),
            num_classes=10,
        )
        for split, stem in (("train", "train"), ("test", "t10k"))
    }
    return Parts(DIGITS, splits)


def load_emnist(root: Path | None, variant: str) -> Parts:
    """Read one cut of EMNIST upright; without a root from the cache, downloading it (536 MiB) if need be."""
    cut = EMNIST_VARIANTS[variant]
    if root is None:
        root = cache_directory() / "EMNIST"
        if _find_emnist(root, variant, "train", "images") is None:
            fetch(_EMNIST_FILE, root)
    elif not root.is_dir():
        raise DataError(f"data 'emnist-{variant}:{root}': there is no such folder. Give one that holds EMNIST/raw.")
    splits: dict[str, Split] = {}
    for split in ("train", "test"):
        files = [_find_emnist(root, variant, split, kind) for kind in ("images", "labels")]
        if None in files:
            raise _absent(root, _emnist_name(variant, split, "images"), f"emnist-{variant}:")
        images, labels = (file for file in files if file is not None)
        splits[split] = _read_split(
            split, images, labels, num_classes=len(cut.classes), first_label=cut.first_label, transposed=True
        )
    return Parts(cut.classes, splits)


def load_mnist_and_letters(root: Path | None) -> Parts:
    """Read the digits of MNIST and the letters of EMNIST as 36 classes, '0'..'9' and then 'A'..'Z'."""
    digits, letters = load_mnist(root), load_emnist(root, "letters")
    splits: dict[str, Split] = {}
    for name in ("train", "test"):
        ours, theirs = digits.splits[name], letters.splits[name]
        images = np.concatenate([_pixels(ours), _pixels(theirs)])
        labels = np.concatenate([ours.labels, theirs.labels + len(DIGITS)])
        splits[name] = array_split(name, images, labels)
    counts = ", ".join(
        f"{len(part.splits['train']):,} {word}" for part, word in ((digits, "digits"), (letters, "letters"))
    )
    return Parts((*DIGITS, *UPPER), splits, (f"digits from MNIST, letters from EMNIST (train: {counts})",))


_File = tuple[Path, str | None]


def _find(root: Path, folders: Sequence[str], name: str) -> _File | None:
    """Find an idx file below the root, packed or not, with the old spelling "images.idx3" too."""
    for folder in folders:
        for spelling in (name, name.replace("-idx", ".idx")):
            for packing in _PACKINGS:
                path = root / folder / f"{spelling}{packing}"
                if path.is_file():
                    return path, None
    return None


def _emnist_name(variant: str, split: str, kind: str) -> str:
    return f"emnist-{variant}-{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"


def _find_emnist(root: Path, variant: str, split: str, kind: str) -> _File | None:
    name = _emnist_name(variant, split, kind)
    found = _find(root, _EMNIST_FOLDERS, name)
    if found is not None:
        return found
    # The official archive is read where it lies: nothing is unpacked to disk.
    archives = (root / folder / _EMNIST_FILE.name for folder in _EMNIST_FOLDERS)
    return next(((archive, f"gzip/{name}.gz") for archive in archives if archive.is_file()), None)


def _require(root: Path, folders: Sequence[str], name: str, source: str) -> _File:
    found = _find(root, folders, name)
    if found is None:
        raise _absent(root, name, source)
    return found


def _absent(root: Path, name: str, source: str) -> DataError:
    return DataError(
        f"data '{source}{root}': no {name} (plain, .gz or .xz) in the folder or its raw subfolder. "
        f"Put the official files there, or use '{source}' to download them."
    )


def _read_split(
    split: str,
    images_file: _File,
    labels_file: _File,
    *,
    num_classes: int,
    first_label: int = 0,
    transposed: bool = False,
) -> Split:
    images = read_idx(images_file[0], dimensions=3, member=images_file[1])
    labels = read_idx(labels_file[0], dimensions=1, member=labels_file[1]).astype(np.int64) - first_label
    if len(images) != len(labels):
        raise DataError(
            f"data '{images_file[0]}': has {len(images):,} images but '{labels_file[0].name}' {len(labels):,} labels. "
            "Get both files again."
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(
            f"data '{labels_file[0]}': labels run from {labels.min() + first_label} to {labels.max() + first_label}, "
            f"expected {first_label} to {num_classes - 1 + first_label}. Get the file again."
        )
    if 0 in images.shape[1:]:
        raise DataError(f"data '{images_file[0]}': its images have no pixels. Get the file again.")
    if transposed:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return array_split(split, images, labels)


def _pixels(split: Split) -> NDArray[np.uint8]:
    assert isinstance(split.images, ArrayImages)
    return split.images.array
