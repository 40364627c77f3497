"""Every corrupted image that runs are measured on, made once and kept on the disk, the same for every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cells, cells_of
from images import read_test
from numpy.typing import NDArray
from plan import Transfer

from convpeft.data import prepare
from convpeft.data.cifar_c import open_cifar_c
from convpeft.data.corruptions import ALL
from convpeft.data.corruptions.corrupting import corrupt
from convpeft.data.splits import choose_per_class
from convpeft.models import Preprocessing

_FILE = "corrupted.npy"
_BATCH = 64


@dataclass(frozen=True)
class Corrupted:
    """Corrupted images in the order of `cells`: corruption by corruption, severity by severity, image by image.

    Attributes:
        pixels: uint8 (answers, height, width, channels).
        labels: Of the test images that they were made of.
        cells: Which test images each severity of each corruption has, ascending.
        origin: "regenerated" or "files".
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cells: Cells
    origin: str

    @property
    def digest(self) -> str:
        """SHA-256 of pixels and labels."""
        found = hashlib.sha256(self.labels.tobytes())
        for start in range(0, len(self.pixels), 1000):
            found.update(np.ascontiguousarray(self.pixels[start : start + 1000]).tobytes())
        return found.hexdigest()

    def batches(self, preprocessing: Preprocessing) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The images as a network gets them, with labels and numbers from 0 on, in batches."""
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
        labels = torch.from_numpy(self.labels[np.concatenate(list(self.cells.values()))])
        for start in range(0, len(self.pixels), _BATCH):
            planes = torch.stack([prepare(image, preprocessing) for image in self.pixels[start : start + _BATCH]])
            numbers = torch.arange(start, start + len(planes))
            yield (planes.float() / 255 - mean) / std, labels[numbers], numbers


def corrupted_images(task: Transfer, data: Path, folder: Path) -> Corrupted:
    """Read them from the folder, or make them there: from the published files where the user has them."""
    official = data / task.official
    make = _from_files if task.official and official.is_dir() else _regenerated
    return make(task, official, folder)


def _regenerated(task: Transfer, _: Path, folder: Path) -> Corrupted:
    test = read_test(folder)
    cells = cells_of(test["labels"], task.parts, ALL)
    path = folder / _FILE
    if not path.is_file():
        pixels = _empty(path, cells, test["images"].shape[1:])
        rows = ((name, severity, int(number)) for (name, severity), numbers in cells.items() for number in numbers)
        for row, (name, severity, number) in enumerate(rows):
            index = int(test["numbers"][number])
            pixels[row] = corrupt(test["images"][number], name, severity, index=index)
        _finish(path)
    return Corrupted(np.load(path, mmap_mode="r"), test["labels"], cells, "regenerated")


def _from_files(task: Transfer, official: Path, folder: Path) -> Corrupted:
    files = open_cifar_c(official)
    labels = files.labels[: files.count]
    chosen = np.arange(files.count)
    if task.test_per_class is not None:
        chosen = choose_per_class(labels, task.test_per_class, seed=0)
    cells = cells_of(labels[chosen], task.parts, files.names)
    path = folder / f"official-{_FILE}"
    if not path.is_file():
        pixels = _empty(path, cells, (32, 32, 3))
        row = 0
        for (name, severity), numbers in cells.items():
            images = files.split(name, severity).images
            for number in numbers:
                pixels[row] = images[int(chosen[number])]
                row += 1
        _finish(path)
    return Corrupted(np.load(path, mmap_mode="r"), labels[chosen], cells, "files")


def _empty(path: Path, cells: Cells, shape: tuple[int, ...]) -> NDArray[Any]:
    count = sum(len(numbers) for numbers in cells.values())
    unfinished = path.with_name(f"unfinished-{path.name}")
    return np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, *shape))


def _finish(path: Path) -> None:
    """Give the file its name once it is whole."""
    path.with_name(f"unfinished-{path.name}").replace(path)
