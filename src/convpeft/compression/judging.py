"""The images that choose the ranks, and those that only judge the outcome."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor, nn

from convpeft.data import Dataset, ImageBatches, Split
from convpeft.data.splits import choose
from convpeft.errors import DataError, ModelError
from convpeft.evaluation import Predictions, predict_logits
from convpeft.models import Preprocessing

_BATCH = 64


def choosing_images(dataset: Dataset, count: int, *, seed: int) -> Split:
    """Up to so many images of the validation split, in proportion to the classes; never one of the test split."""
    images = dataset.val
    return images.subset(choose(images.labels, count, seed=seed)) if count < len(images) else images


class Judge:
    """Measures networks on one set of images, which are read once and kept where there is room.

    Images go channels last: thin convolutions then take half of the time on a CPU, and sums differ in the last bits.

    Args:
        images: With labels as positions of the network's outputs.
        preprocessing: What the network expects.
        classes: How many classes the images have.
    """

    def __init__(self, images: Split, preprocessing: Preprocessing, *, classes: int) -> None:
        self._batches, self._classes = ImageBatches(images, preprocessing, batch_size=_BATCH), classes

    def predictions(self, model: nn.Module) -> Predictions:
        """What a network answers.

        Raises:
            DataError: If an image cannot be read, or the data has other classes than the network.
            ModelError: If the network does not run on the images.
        """
        try:
            found = predict_logits(model, self._channels_last())
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = str(error).splitlines()[0][:160]
            raise ModelError(f"the model does not run on these images ({why}). Give images that it takes.") from None
        outputs = found.logits.shape[1]
        if outputs != self._classes:
            raise DataError(
                f"the model has {outputs} outputs, the data {self._classes} classes. Give images of the very classes "
                "that the network was trained on."
            )
        return found

    def accuracy(self, model: nn.Module) -> float:
        """Share of the images that a network gets right; one that answers with NaN gets none."""
        try:
            return float(np.mean(self.predictions(model).correct))
        except ModelError as error:
            if "expected finite logits" in str(error):
                return 0.0
            raise

    def _channels_last(self) -> Generator[tuple[Tensor, Tensor, Tensor]]:
        for images, labels, index in self._batches:
            yield images.contiguous(memory_format=torch.channels_last), labels, index
