"""What is known of a training, epoch by epoch, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from convpeft.kernels import KernelPlan


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are means over images, rates are at the epoch's end, times in seconds."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Position:
    """How far an epoch is: batches trained on, and what they came to. Time in seconds."""

    epoch: int
    batches: int = 0
    images: int = 0
    loss_sum: float = 0.0
    right: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Fit:
    """Outcome of the loop; the model holds the best epoch's adapter."""

    history: tuple[Epoch, ...]
    best: Epoch
    stopped_early: bool
    kernels: KernelPlan | None = None  # how the model was computed


class Watcher(Protocol):
    """Sees the training go on, for a progress bar."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """A batch of so many images was seen; loss and accuracy are the epoch's so far."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """An epoch ended."""
        ...


@runtime_checkable
class Foreteller(Protocol):
    """A watcher that sees also what is computed before the first epoch."""

    def prepare(self, what: str, done: int, total: int) -> None:
        """So many images are done, and of how many."""
        ...


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch of the highest validation accuracy, among equals that of the lowest validation loss."""
    return max(history, key=lambda row: (row.val_accuracy, -row.val_loss))


def is_out_of_patience(history: Sequence[Epoch], patience: int) -> bool:
    """Whether so many epochs have passed without a better one; 0 waits for ever."""
    return bool(patience and history and len(history) - best_epoch(history).epoch >= patience)
