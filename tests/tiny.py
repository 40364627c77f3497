"""Data, networks and recipes small enough that a whole run takes a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

CLASSES = ("high", "low", "middle")  # sorted, as a folder's classes are
_ROWS = {"high": 3, "middle": 12, "low": 21}


def draw(name: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a bright bar at the height of the class on noise, uint8 (28, 28)."""
    image = rng.integers(0, 60, (28, 28), dtype=np.uint8)
    start = _ROWS[name] + int(rng.integers(-1, 2))
    image[start : start + 4, 3:25] += 180
    return image


def write_images(
    root: Path, *, names: Sequence[str] = CLASSES, count: int = 8, seed: int = 0, split: str | None = None
) -> Path:
    """Write `count` PNG files a class into root/[split/]CLASS, no two of them alike."""
    rng = np.random.default_rng(seed)
    for name in names:
        folder = root / split / name if split else root / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(name, rng)).save(folder / f"{number}.png")
    return root


def write_splits(root: Path, *, names: Sequence[str] = CLASSES, count: int = 4) -> Path:
    """Write train, val and test folders, so that a test knows which image is where."""
    for seed, split in enumerate(("train", "val", "test")):
        write_images(root, names=names, count=count, seed=seed, split=split)
    return root


def recipe(data: Path, out: Path, **keys: Any) -> dict[str, Any]:
    """Return recipe values of a run of about half a second; `keys` are section__key=value."""
    values: dict[str, Any] = {
        "model": {"source": "small-cnn"},
        "data": {"source": f"folder:{data}", "val_fraction": 0.25, "test_fraction": 0.25},
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 3, "batch_size": 6, "lr": 0.01},
        "out": str(out),
    }
    for key, value in keys.items():
        section, _, name = key.rpartition("__")
        (values[section] if section else values)[name] = value
    return values


def files_below(root: Path) -> set[str]:
    """Return the paths of all files below a folder, relative to it."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


class Points:
    """Batches of vectors as the training loop takes them; the order of an epoch depends on its number."""

    def __init__(self, inputs: Tensor, labels: Tensor, *, batch_size: int, shuffle: bool = False) -> None:
        # The data set has no set_epoch of its own: accelerate would call it with its own count.
        self.order = _Order(len(labels), batch_size, shuffle)
        self.loader = torch.utils.data.DataLoader(
            _Rows(inputs, labels), batch_sampler=self.order, collate_fn=_as_it_is, generator=torch.Generator()
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.order.epoch = epoch


class _Rows(torch.utils.data.Dataset):
    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        where = torch.tensor(index)
        return self.inputs[where], self.labels[where], where


class _Order:
    def __init__(self, count: int, batch_size: int, shuffle: bool) -> None:
        self.count, self.batch_size, self.shuffle, self.epoch, self.drop_last = count, batch_size, shuffle, 0, False

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(self.count) if self.shuffle else np.arange(self.count)
        for start in range(0, self.count, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def _as_it_is(batch: Any) -> Any:
    return batch


def separable(count: int = 24, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points (count, 4) of two classes that a linear layer tells apart, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    return inputs + 0.5 * torch.stack([2.0 * labels - 1] * 4, 1), labels


def perceptron(*, dropout: float = 0.0) -> nn.Module:
    """Return a base of two linear layers and two outputs, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))
