"""Small data files in the official forms, written by other means than the readers use."""

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def save_picture(path: Path, *, value: int = 100, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Write `counts[name]` pictures, no two alike, below each folder `name`."""
    value = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            save_picture(root / name / f"{number}.png", value=value % 250, size=(4 + value // 250, 4))
            value += 1
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + bytes(array.astype(np.uint8).ravel().tolist())


def write_idx(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, *, labels: list[int], suffix: str = "") -> np.ndarray:
    """Write train and test files of the same few images and return the images."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    for stem in ("train", "t10k"):
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.array(labels))
    return images


def write_emnist(folder: Path, variant: str, *, labels: list[int], suffix: str = "") -> np.ndarray:
    """Write transposed images, as the official files hold them, and return them upright."""
    upright = np.random.default_rng(1).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    for split in ("train", "test"):
        write_idx(folder / f"emnist-{variant}-{split}-images-idx3-ubyte{suffix}", np.swapaxes(upright, 1, 2))
        write_idx(folder / f"emnist-{variant}-{split}-labels-idx1-ubyte{suffix}", np.array(labels))
    return upright
