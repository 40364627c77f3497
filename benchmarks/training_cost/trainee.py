"""A network that is being trained: what the benchmark asks of each library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from plan import CLASSES, INFERENCE_BATCH, LEARNING_RATE, MODES, SEED, WEIGHT_DECAY, Cell
from torch import Tensor, nn

Call = Callable[[Tensor], Any]


class NotOfferedError(Exception):
    """The library has no such thing; the row says so."""


class Trainee(ABC):
    """One network with one way to train it. `note` says what differs from the other rows."""

    note = ""

    @abstractmethod
    def forward(self) -> Any:
        """The loss of the batch, its graph kept."""

    @abstractmethod
    def backward(self, loss: Any) -> None:
        """Gradients of the loss."""

    @abstractmethod
    def step(self) -> None:
        """A whole training step."""

    @abstractmethod
    def own(self) -> Iterable[Tensor]:
        """Parameters and buffers: what is there whether it is trained or not."""

    @property
    @abstractmethod
    def trainable(self) -> int:
        """Numbers that the optimiser changes."""

    def chosen(self) -> dict[str, Any]:
        """What the library chose by itself, after a step."""
        return {}

    def merged_and_plain(self) -> tuple[Call, Call]:
        """The merged network and a plain one of the same kind, in evaluation; the last thing asked for."""
        raise NotOfferedError


class TorchTrainee(Trainee):
    """A PyTorch model in a plain loop: AdamW, cross-entropy, gradients set to None."""

    def __init__(self, cell: Cell, model: nn.Module) -> None:
        mode = MODES[cell.mode]
        self.model, self._bf16, self._layout = model, mode.against == "bf16", cell.layout
        self._device = cell.device
        self._images, self._labels = batch_of(cell)
        self.model.to(cell.device)
        if cell.layout == "channels_last":
            self.model.to(memory_format=torch.channels_last)
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._run: Call = torch.compile(model) if mode.extra == "compile" else model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=mode.extra == "fused" or None
        )

    def forward(self) -> Tensor:
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bf16):
            return F.cross_entropy(self._run(self._images), self._labels)

    def backward(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step(self) -> None:
        self.backward(self.forward())
        self._optimizer.step()

    def own(self) -> Iterable[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    @property
    def trainable(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters)

    def for_inference(self, model: nn.Module) -> nn.Module:
        """Ready for images in the usual layout; a layout that this benchmark chose for training is taken back."""
        if self._layout != "own":
            model.to(memory_format=torch.contiguous_format)
        return model.requires_grad_(False).eval()


def batch_of(cell: Cell) -> tuple[Tensor, Tensor]:
    """Random images and labels, the same for every mode."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(cell.batch, 3, cell.size, cell.size, generator=generator)
    labels = torch.randint(CLASSES, (cell.batch,), generator=generator)
    return images.to(cell.device), labels.to(cell.device)


def images_for_inference(cell: Cell) -> Tensor:
    """The first images of the batch."""
    return batch_of(cell)[0][:INFERENCE_BATCH]
