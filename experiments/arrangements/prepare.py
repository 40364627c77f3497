"""What the grids read, put into one folder: drawn images, networks trained on MNIST, and copies of what is there."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plan import Base, Budget, Drawing

from convpeft.data import load_data
from convpeft.data.datasets import Split
from convpeft.reporting import write_whole

_SEED = 0


def prepare(budget: Budget, data: Path, files: Path) -> None:
    """Make what is not there yet."""
    files.mkdir(parents=True, exist_ok=True)
    for place in budget.copies:
        if not (files / Path(place).name).exists():
            shutil.copyfile(data / place, files / Path(place).name)
    for drawing in budget.drawings:
        if not (files / drawing.file).exists():
            draw(drawing, data, files / drawing.file)
    facts = files / "prepared.json"
    bases: list[dict[str, Any]] = json.loads(facts.read_text(encoding="utf-8"))["bases"] if facts.is_file() else []
    for base in budget.bases:
        if base.file not in [each["file"] for each in bases]:
            bases.append(train_base(base, data, files / base.file))
            write_whole(facts, (json.dumps({"bases": bases}, indent=1) + "\n").encode())


def draw(drawing: Drawing, data: Path, out: Path) -> None:
    """Write some images of each class as an .npz file of the MedMNIST form."""
    spec = drawing.source.format(data=data.resolve())
    dataset = load_data(spec, seed=_SEED, per_class=drawing.train, val_per_class=drawing.val)
    chosen = dataset.test.subset(_some(dataset.test.labels, drawing.test))
    arrays: dict[str, NDArray[np.generic]] = {"classes": np.array(dataset.classes)}
    for name, split in (("train", dataset.train), ("val", dataset.val), ("test", chosen)):
        arrays |= {f"{name}_images": _pixels(split), f"{name}_labels": split.labels}
    work = out.with_suffix(".part.npz")
    np.savez(work, **arrays)  # pyright: ignore[reportArgumentType]
    work.rename(out)


def train_base(base: Base, data: Path, out: Path) -> dict[str, Any]:
    """Train a network from random weights, write its weights, and say what it came to."""
    from safetensors.torch import save_file

    from convpeft.merging import merge
    from convpeft.training.runs import train

    run = out.with_suffix(".run")
    shutil.rmtree(run, ignore_errors=True)
    result = train(
        {
            "out": str(run),
            "model": {"source": base.model, "pretrained": False, "image_size": 28},
            "data": {"source": base.data.format(data=data.resolve()), "limit": base.images},
            "method": {"name": "full"},
            "train": {"epochs": base.epochs, "batch_size": 64, "lr": 0.003, "warmup": 0.15, "seed": _SEED},
        }
    )
    state = {name: tensor.contiguous() for name, tensor in merge(result.model).state_dict().items()}
    save_file(state, out)
    print(f"{out.name}: {result.test.accuracy:.2%} of {result.test.n} test images", flush=True)
    return {
        "file": base.file,
        "model": base.model,
        "data": base.data.partition(":")[0] if "{data}" in base.data else base.data,
        "images": base.images,
        "epochs": base.epochs,
        "test_accuracy": result.test.accuracy,
        "test_images": result.test.n,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }


def _some(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places of at most so many images of each label, in order."""
    rng = np.random.default_rng(_SEED)
    places = [rng.permutation(np.flatnonzero(labels == label))[:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(places))


def _pixels(split: Split) -> NDArray[np.uint8]:
    return np.stack([np.asarray(split.images[place]) for place in range(len(split))])
