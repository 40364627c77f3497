"""Classify corrupted images: made on the spot, or read from the published files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from convpeft.data import Dataset, Split
from convpeft.data.cifar_c import CifarC
from convpeft.data.corruptions.corrupting import corrupt
from convpeft.data.corruptions.severities import choose_table
from convpeft.data.preparing import convert_channels, prepare
from convpeft.data.splits import choose
from convpeft.evaluation.inference import Classifier, labels_by_name
from convpeft.evaluation.predicting import predict_logits
from convpeft.evaluation.robustness import Robustness
from convpeft.models import Preprocessing

_BATCH = 64
_KEPT_BYTES = 1 << 30

Progress = Callable[[str, int], None]
"""Is told a name and how many images were seen."""

Pixels = NDArray[np.uint8]


class CorruptedSource(Protocol):
    """Where corrupted images come from."""

    def planes(self, name: str, severity: int, number: int, /) -> torch.Tensor:
        """One image under one severity of a corruption as the network gets it, uint8 (channels, height, width)."""
        ...


class Regenerated:
    """Images that are corrupted when they are asked for.

    An image is corrupted as the network sees it, resized and cut out, as ImageNet-C is made; or as it is where it is
    smaller than that, as CIFAR-10-C is, and then brought to the network's size. One of one channel stays grey.

    Args:
        images: What is corrupted.
        preprocessing: What the network expects.
        table: "cifar", "imagenet" or "auto", by the size of the first image.
    """

    def __init__(self, images: Split, preprocessing: Preprocessing, *, table: str = "auto") -> None:
        self._images, self._preprocessing = images.images, preprocessing
        self._kept: dict[int, Pixels] = {}
        self._bytes = 0
        height, width = self.before(0).shape[:2]
        self.size = (height, width)
        self.table = choose_table(self.size, table)

    def before(self, number: int) -> Pixels:
        """The image that a corruption gets, (height, width, channels); kept in memory as long as there is room."""
        if number in self._kept:
            return self._kept[number]
        image, (height, width) = self._images[number], self._preprocessing.size
        if image.shape[2] not in (1, 3):
            image = convert_channels(image, self._preprocessing.channels)
        if image.shape[0] >= height or image.shape[1] >= width:
            channels = min(image.shape[2], self._preprocessing.channels)
            seen = prepare(image, dataclasses.replace(self._preprocessing, channels=channels, **_plain(channels)))
            image = seen.permute(1, 2, 0).contiguous().numpy()
        if self._bytes + image.nbytes <= _KEPT_BYTES:
            self._kept[number] = image
            self._bytes += image.nbytes
        return image

    def after(self, image: Pixels) -> torch.Tensor:
        """A corrupted image as the network gets it, uint8 (channels, height, width)."""
        if image.shape[:2] != tuple(self._preprocessing.size):
            return prepare(image, self._preprocessing)
        return torch.from_numpy(convert_channels(image, self._preprocessing.channels)).permute(2, 0, 1)

    def planes(self, name: str, severity: int, number: int, /) -> torch.Tensor:
        """The image under a severity of a corruption, the same bytes each time."""
        return self.after(corrupt(self.before(number), name, severity, index=number, table=self.table))


class FromFiles:
    """Images of the published files, brought to the size that the network expects."""

    def __init__(self, files: CifarC, preprocessing: Preprocessing) -> None:
        self._files, self._preprocessing = files, preprocessing
        self._splits: dict[tuple[str, int], Split] = {}

    def planes(self, name: str, severity: int, number: int, /) -> torch.Tensor:
        """The image as the file of that corruption has it."""
        at = (name, severity)
        if at not in self._splits:
            self._splits = {at: self._files.split(name, severity)}
        return prepare(self._splits[at].images[number], self._preprocessing)


def _plain(channels: int) -> dict[str, tuple[float, ...]]:
    """Statistics that are not used but must be as many as there are channels."""
    return {"mean": (0.0,) * channels, "std": (1.0,) * channels}


def choose_numbers(labels: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """All positions, or at most so many of them: stratified by class, always the same, in order."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    return np.sort(choose(labels, limit, seed=0))


def measure_robustness(
    classifier: Classifier,
    source: CorruptedSource,
    labels: NDArray[np.int64],
    *,
    numbers: NDArray[np.int64],
    names: Sequence[str],
    severities: Sequence[int],
    clean: NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
) -> Robustness:
    """Classify the same images under every severity of every corruption.

    Args:
        classifier: The model.
        source: Where corrupted images come from.
        labels: The classes of all images as positions in the model's, int64 (count,).
        numbers: Which images are taken.
        names: Corruptions.
        severities: Of 1 to 5.
        clean: What is known of the images as they are.
        progress: Is told of each batch.
    """
    correct = np.zeros((len(names), len(severities), len(numbers)), dtype=bool)
    for row, name in enumerate(names):
        for column, severity in enumerate(severities):
            one = partial(source.planes, name, severity)
            told = None if progress is None else partial(progress, f"{name} {severity}")
            correct[row, column] = _right(classifier, one, labels, numbers, told)
    return Robustness(tuple(names), tuple(severities), correct, clean)


def measure_clean(
    classifier: Classifier, images: Split, labels: NDArray[np.int64], numbers: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Say of each of these images, as it is, whether it is classified right, (N,)."""

    def one(number: int) -> torch.Tensor:
        return prepare(images.images[number], classifier.preprocessing)

    return _right(classifier, one, labels, numbers, None)


def labels_for(classifier: Classifier, dataset: Dataset, images: Split) -> NDArray[np.int64]:
    """The labels of images as positions in the model's classes, by name.

    Raises:
        DataError: If there is a class that the model does not know.
    """
    return labels_by_name(images, dataset, classifier.classes)


def _right(
    classifier: Classifier,
    one: Callable[[int], torch.Tensor],
    labels: NDArray[np.int64],
    numbers: NDArray[np.int64],
    progress: Callable[[int], None] | None,
) -> NDArray[np.bool_]:
    served = _batches(one, labels, numbers, classifier.preprocessing)
    return predict_logits(classifier.model, served, progress=progress).correct


def _batches(
    one: Callable[[int], torch.Tensor],
    labels: NDArray[np.int64],
    numbers: NDArray[np.int64],
    preprocessing: Preprocessing,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    for start in range(0, len(numbers), _BATCH):
        chosen = numbers[start : start + _BATCH]
        pixels = torch.stack([one(int(number)) for number in chosen])  # (batch, channels, height, width)
        yield (pixels.float() / 255 - mean) / std, torch.from_numpy(labels[chosen]), torch.from_numpy(chosen)
