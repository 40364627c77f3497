"""Images a second that the training loader serves, from folders of pictures, against those that training takes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from plan import CLASSES, SEED, Cell
from with_convpeft import make

from convpeft.data import ImageBatches, load_data
from convpeft.models import Preprocessing

FORMS = ("jpeg", "png")
SIZE, STORED, PICTURES, BATCH, EPOCHS = 224, 256, 320, 16, 3


def measure(net: str, *, fast: bool, threads: int) -> dict[str, Any]:
    """One row: images a second of training and of the loader, for each form of file and state of the cache."""
    pictures, batch, size = (60, 4, 32) if fast else (PICTURES, BATCH, SIZE)
    served: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            root = Path(folder) / form
            _write_pictures(root, form, pictures, stored=size * STORED // SIZE)
            served[form] = _serve(root, size, batch)
    cell = Cell(net, "default", batch, size)
    trainee = make(cell)
    trainee.step()
    rates = []
    for _ in range(2 if fast else 6):
        began = time.perf_counter()
        trainee.step()
        rates.append(batch / (time.perf_counter() - began))
    return {"size": size, "batch": batch, "pictures": pictures, "served": served, "training": rates, "threads": threads}


def _serve(root: Path, size: int, batch: int) -> dict[str, list[float]]:
    """Images a second without the cache, while it is filled, and from it."""
    split = load_data(f"folder:{root}", seed=SEED).train
    preprocessing = Preprocessing(
        size=(size, size),
        resize="crop",
        crop=SIZE / STORED,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        channels=3,
        interpolation="bilinear",
    )
    rates: dict[str, list[float]] = {"decoding": [], "filling": [], "cached": [], "cached, augmented": []}
    for _ in range(EPOCHS):
        cold = ImageBatches(split, preprocessing, batch_size=batch, shuffle=True, cache_bytes=0)
        rates["decoding"].append(_epoch_rate(cold))
        began = time.perf_counter()
        warm = ImageBatches(split, preprocessing, batch_size=batch, shuffle=True)
        _ = warm.dataset[0]
        rates["filling"].append(len(split) / (time.perf_counter() - began))
        rates["cached"].append(_epoch_rate(warm))
        augmented = ImageBatches(split, preprocessing, batch_size=batch, shuffle=True, augment="flip")
        _ = augmented.dataset[0]
        rates["cached, augmented"].append(_epoch_rate(augmented))
    return {name: [round(rate, 1) for rate in found] for name, found in rates.items()}


def _epoch_rate(batches: ImageBatches) -> float:
    began = time.perf_counter()
    served = sum(len(labels) for _, labels, _ in batches)
    return served / (time.perf_counter() - began)


def _write_pictures(root: Path, form: str, count: int, *, stored: int) -> None:
    """Smooth random pictures, which files hold about as well as photographs."""
    from PIL import Image

    rng = np.random.default_rng(SEED)
    for number in range(count):
        small = rng.integers(0, 256, (stored // 8, stored // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((stored, stored), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-6, 7, smooth.shape, dtype=np.int16)
        picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number:04d}.{form}")
