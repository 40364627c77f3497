"""A trained adapter as a classifier: from image files to class names, and from a data set to figures."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convpeft.adapter_file import read_adapter
from convpeft.attachment import disabled, old_head
from convpeft.data import Dataset, ImageBatches, Split, prepare, read_image
from convpeft.data.images import SUFFIXES
from convpeft.errors import AdapterFileError, DataError
from convpeft.evaluation.predicting import Predictions, predict_logits
from convpeft.models import Preprocessing, from_adapter


@dataclass(frozen=True)
class Classifier:
    """A base with its adapter, how its images are prepared and what its outputs are called."""

    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The most probable classes of one image, best first."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def load_classifier(path: str | Path, *, weights: str | Path | None = None, force: bool = False) -> Classifier:
    """Build the base that an adapter file records, load the adapter, and read classes and preprocessing from it.

    Args:
        path: An adapter or a run.
        weights: The base's weights, where they are not at the recorded place.
        force: Load onto a base with another fingerprint all the same, with a warning.

    Raises:
        AdapterFileError: If the file tells no classes or preprocessing, or is damaged or made for another base.
        ModelError: If the base cannot be built.
    """
    file = read_adapter(path)
    for field in ("classes", "preprocessing"):
        if file.config[field] is None:
            raise AdapterFileError(f"{file.path}: tells no {field}. Save with convpeft.save(..., {field}=...).")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = from_adapter(file.path, weights=weights, force=force).eval().to(device)
    told = Preprocessing.from_dict(file.config["preprocessing"], where=str(file.path))
    return Classifier(model, told, tuple(file.config["classes"]))


def classify(classifier: Classifier, images: Sequence[Path], *, top: int = 5, batch_size: int = 32) -> list[Answer]:
    """Answer for each image with its most probable classes.

    Raises:
        DataError: If an image cannot be read, naming it.
    """
    answers: list[Answer] = []
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (classifier.preprocessing.mean, classifier.preprocessing.std))
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        pixels = torch.stack([prepare(read_image(path), classifier.preprocessing) for path in paths])
        inputs = (pixels.float() / 255 - mean) / std  # (batch, channels, height, width)
        numbers = torch.arange(len(paths))
        found = predict_logits(classifier.model, [(inputs, numbers, numbers)]).probabilities
        for path, row in zip(paths, found, strict=True):
            order = np.argsort(-row, kind="stable")[:top]
            names = tuple(classifier.classes[index] for index in order)
            answers.append(Answer(str(path), names, tuple(float(row[index]) for index in order)))
    return answers


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the images below each folder, sorted.

    Raises:
        DataError: If a path does not exist or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if _is_picture(each.relative_to(path)) and each.is_file())
            if not inside:
                raise DataError(f"{path}: holds no image. Looked for {', '.join(sorted(SUFFIXES))}.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder.")
    return found


def _is_picture(inside: Path) -> bool:
    """By its name; hidden files and folders, and what macOS puts into archives, are none."""
    return inside.suffix.lower() in SUFFIXES and not any(p.startswith(".") or p == "__MACOSX" for p in inside.parts)


def evaluate_split(
    classifier: Classifier, dataset: Dataset, split: str, *, who: str = "adapter", batch_size: int = 64
) -> tuple[Predictions, tuple[str, ...]]:
    """Predictions on one split, with labels by class name, and the names of the outputs.

    Args:
        classifier: The model.
        dataset: Where the images are from; its classes are matched by name.
        split: `train`, `val`, `test` or `all`.
        who: `adapter`; `base`, the network without it; or `old-head`, the adapted features under the base's own head.
        batch_size: Images a batch.

    Raises:
        OptionError: If there is no such split.
        DataError: If the split has a class that the model does not know, or the base has too few outputs.
    """
    images = dataset.split(split)
    if who == "adapter":
        images = dataclasses.replace(images, labels=labels_by_name(images, dataset, classifier.classes))
    served = ImageBatches(images, classifier.preprocessing, batch_size=batch_size)
    with _as(classifier.model, who):
        predictions = predict_logits(classifier.model, served)
    outputs = predictions.logits.shape[1]
    if who == "adapter":
        return predictions, classifier.classes
    if outputs < len(dataset.classes):
        raise DataError(f"the base has {outputs} outputs, {dataset.spec} has {len(dataset.classes)} classes.")
    extra = tuple(f"output {number}" for number in range(len(dataset.classes), outputs))
    return predictions, (*dataset.classes, *extra)  # a base tells no names: its outputs are taken in order


@contextlib.contextmanager
def _as(model: nn.Module, who: str) -> Generator[None]:
    if who == "adapter":
        yield
        return
    with disabled(model) if who == "base" else old_head(model):
        yield


def labels_by_name(images: Split, dataset: Dataset, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Labels as positions among the model's classes, whatever their positions in the data."""
    position = {name: number for number, name in enumerate(classes)}
    counts = images.class_counts(len(dataset.classes))
    present = [name for name, number in zip(dataset.classes, counts, strict=True) if number]
    unknown = [name for name in present if name not in position]
    if unknown:
        raise DataError(
            f"{dataset.spec}: class {unknown[0]!r} is unknown to the model ({len(unknown)} such). "
            f"It knows {', '.join(classes[:8])}{'...' if len(classes) > 8 else ''}."
        )
    table = np.array([position.get(name, -1) for name in dataset.classes], dtype=np.int64)
    return table[images.labels]
