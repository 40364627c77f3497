"""Run a model over batches and keep its logits, leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convpeft.errors import DataError, ModelError


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answered to N images over K classes.

    Attributes:
        logits: (N, K) float32.
        labels: The true classes, (N,) int64.
        index: The position of each image in its split, (N,) int64.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The softmax of the logits in float64, (N, K)."""
        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image (the first of equals), (N,) int64."""
        return self.probabilities.argmax(axis=1).astype(np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image was classified right, (N,)."""
        return self.predicted == self.labels


def predict_logits(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Run the model in evaluation mode over every batch.

    The training flag of every module is as before when this returns or raises.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K).
        batches: Yields images, labels (B,) and index (B,).
        device: Where the images are sent; the model stays put. Default: the device of its first tensor.
        progress: Called after every batch with the number of images in it.

    Returns:
        The logits, labels and positions of all images, in the order of the batches.

    Raises:
        ModelError: If the model does not answer with finite logits of one shape (B, K).
        DataError: If there are no images.
    """
    target = torch.device(device) if device is not None else _device_of(model)
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    index: list[NDArray[np.int64]] = []
    with _evaluating(model), torch.inference_mode():
        for images, batch_labels, batch_index in batches:
            answer: object = model(images.to(target, non_blocking=True))
            rows = _checked(answer, len(images), columns=logits[0].shape[1] if logits else None)
            logits.append(rows)
            labels.append(batch_labels.cpu().numpy().astype(np.int64))
            index.append(batch_index.cpu().numpy().astype(np.int64))
            if progress is not None:
                progress(len(rows))
    if not logits:
        raise DataError("predict_logits: expected at least one batch of images, got none. Is the split empty?")
    return Predictions(np.concatenate(logits), np.concatenate(labels), np.concatenate(index))


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Put the model into evaluation mode and give every module its own flag back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    if tensor is None:
        tensor = next(model.buffers(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _checked(answer: object, images: int, *, columns: int | None) -> NDArray[np.float32]:
    """Turn the model's answer into an array (images, columns), or say what is wrong with it."""
    wanted = f"({images}, {'classes' if columns is None else columns})"
    if not isinstance(answer, Tensor):
        raise ModelError(
            f"predict_logits: expected a tensor of logits {wanted} from the model, "
            f"got {type(answer).__name__}. Wrap the model so that its forward returns the logits alone."
        )
    if answer.ndim != 2 or len(answer) != images or (columns is not None and answer.shape[1] != columns):
        raise ModelError(
            f"predict_logits: expected logits of shape {wanted} from the model, got {tuple(answer.shape)}. "
            "Give the model a classification head."
        )
    rows = answer.float().cpu().numpy()
    broken = int(np.sum(~np.isfinite(rows).all(axis=1)))
    if broken:
        raise ModelError(
            f"predict_logits: expected finite logits, got NaN or infinity for {broken} of {images} images of "
            "a batch. Check the weights and the images, or lower the learning rate that trained them."
        )
    return rows
