"""CIFAR-10 and CIFAR-100 from the official python archives, packed or not, or from image folders."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from convpeft.data.datasets import Parts, Split, array_split
from convpeft.data.downloads import PublicFile, cache_directory, fetch
from convpeft.data.folders import load_folder
from convpeft.data.limits import check_expansion
from convpeft.data.pickles import read_plain_pickle
from convpeft.data.quoting import reason
from convpeft.errors import DataError

_SHAPE = (3, 32, 32)
_MAX_FILE_BYTES = 256 << 20
_MAX_MEMBERS = 64
_CHUNK_BYTES = 1 << 16  # more than any header of a tar needs


@dataclass(frozen=True)
class _Release:
    """How one of the two data sets was published."""

    name: str
    archive: PublicFile
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    classes: tuple[str, ...]


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())
CIFAR10 = _Release(
    name="cifar10",
    archive=PublicFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", 200 << 20
    ),
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test=("test_batch",),
    labels="labels",
    classes=CIFAR10_CLASSES,
)
CIFAR100 = _Release(
    name="cifar100",
    archive=PublicFile(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", 200 << 20
    ),
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    labels="fine_labels",
    classes=CIFAR100_CLASSES,
)


def load_cifar(root: Path | None, release: _Release, *, skip_broken: bool = False) -> Parts:
    """Read a release from an archive, its unpacked folder or train/CLASS and test/CLASS folders of pictures.

    Args:
        root: The folder that holds one of these (or the archive itself); None for the cache, where the
            archive is downloaded to if need be (163 MiB or 161 MiB).
        release: CIFAR10 or CIFAR100.
        skip_broken: As for `load_folder`.
    """
    if root is None:
        root = fetch(release.archive, cache_directory())
    for folder in (root, root / release.folder):
        if all((folder / name).is_file() for name in (*release.train, *release.test)):
            return _parts(release, {name: folder / name for name in (*release.train, *release.test)}, None)
    for archive in (root, root / release.archive.name):
        if archive.is_file():
            return _parts(release, {}, archive)
    if (root / "train").is_dir() and (root / "test").is_dir():
        return load_folder(root, skip_broken=skip_broken, classes=release.classes)
    fault = (
        f"holds no {release.folder}, {release.archive.name} or train/CLASS folders"
        if root.is_dir()
        else "does not exist"
    )
    raise DataError(
        f"data '{release.name}:{root}': {fault}. "
        f"Put the official archive there, or use '{release.name}:' to download it."
    )


def _parts(release: _Release, files: dict[str, Path], archive: Path | None) -> Parts:
    wanted = (*release.train, *release.test)
    contents = _read_archive(archive, release) if archive else {name: _read_file(files[name]) for name in wanted}
    splits: dict[str, Split] = {}
    for split, names in (("train", release.train), ("test", release.test)):
        batches = [
            _batch(contents[name], f"'{archive or files[name].parent}' file '{name}'", release) for name in names
        ]
        images = np.concatenate([images for images, _ in batches])
        splits[split] = array_split(split, images, [label for _, labels in batches for label in labels])
    return Parts(release.classes, splits)


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise DataError(f"data '{path}': has {path.stat().st_size:,} bytes, too many for CIFAR. Get the file again.")
    return path.read_bytes()


def _read_archive(archive: Path, release: _Release) -> dict[str, bytes]:
    """Read the wanted members in one pass, writing nothing to disk."""
    wanted = {f"{release.folder}/{name}": name for name in (*release.train, *release.test)}
    contents: dict[str, bytes] = {}
    try:
        with (
            archive.open("rb") as stored,
            _unpacked(stored) as stream,
            tarfile.open(fileobj=_Bounded(stream, f"data '{archive}'", archive.stat().st_size), mode="r:") as packed,
        ):
            for count, member in enumerate(packed):
                if count > _MAX_MEMBERS or member.size > _MAX_FILE_BYTES:
                    raise DataError(f"data '{archive}': is larger than CIFAR can be. Get the official archive again.")
                handle = packed.extractfile(member) if member.name in wanted and member.isreg() else None
                if handle is not None:
                    contents[wanted[member.name]] = _whole(handle)
    except DataError:
        raise
    # tarfile, gzip and zlib raise errors of many kinds for a damaged archive.
    except Exception as error:
        raise DataError(
            f"data '{archive}': cannot be unpacked ({reason(error)}). Get the official archive again."
        ) from error
    missing = sorted(set(wanted.values()) - set(contents))
    if missing:
        raise DataError(f"data '{archive}': has no {release.folder}/{missing[0]}. Get the official archive again.")
    return contents


def _whole(handle: IO[bytes]) -> bytes:
    """Everything in a member, piece by piece."""
    content = bytearray()
    while chunk := handle.read(_CHUNK_BYTES):
        content += chunk
    return bytes(content)


def _unpacked(stored: IO[bytes]) -> IO[bytes]:
    """The plain tar in a file, by how the file begins."""
    head = stored.read(6)
    stored.seek(0)
    if head[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stored))
    if head[:3] == b"BZh":
        return cast("IO[bytes]", bz2.BZ2File(stored))
    return cast("IO[bytes]", lzma.LZMAFile(stored)) if head == b"\xfd7zXZ\0" else stored


class _Bounded(io.RawIOBase):
    """A stream that gives no more at once than a piece, and no more in all than CIFAR has."""

    def __init__(self, stream: IO[bytes], where: str, stored: int) -> None:
        self._stream, self._where, self._stored = stream, where, stored

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _CHUNK_BYTES:
            raise DataError(f"{self._where}: has a header larger than any of CIFAR's. Get the official archive again.")
        self._reach(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._reach(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def _reach(self, place: int) -> None:
        check_expansion(self._where, place, self._stored)
        if place > _MAX_FILE_BYTES:
            raise DataError(f"{self._where}: is larger than CIFAR can be. Get the official archive again.")


def _batch(content: bytes, where: str, release: _Release) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Sequence[int]]:
    """Turn one pickle into images (count, 32, 32, 3) and their labels."""
    table = read_plain_pickle(content, f"data {where}")
    images, labels = table.get("data"), table.get(release.labels)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != np.prod(_SHAPE):
        raise DataError(f"data {where}: has no data of 3,072 bytes an image. Get the official archive again.")
    if not isinstance(labels, list) or len(cast("list[object]", labels)) != len(images):
        raise DataError(f"data {where}: has no {release.labels} for its {len(images):,} images. Get the archive again.")
    good = all(type(x) is int and 0 <= x < len(release.classes) for x in cast("list[object]", labels))
    if not good:
        raise DataError(
            f"data {where}: its {release.labels} are not all 0 to {len(release.classes) - 1}. Get the archive again."
        )
    # (count, 3072) -> (count, 3, 32, 32) -> (count, 32, 32, 3)
    return images.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1), cast("list[int]", labels)
