"""The training loop: from an adapted model and batches to its best state, one epoch after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from convpeft.training.checkpoints import (
    Checkpoint,
    adapter_tensors,
    capture,
    discard_checkpoint,
    read_checkpoint,
    reinstate,
    restore_adapter,
    write_checkpoint,
)
from convpeft.training.engine import Batch, Batches, Engine
from convpeft.training.history import Epoch, Fit, Position, Watcher, best_epoch, is_out_of_patience
from convpeft.training.recipe import TrainSection
from convpeft.training.stopping import StopRequest, stop_requests

LAST = "last"  # the newest checkpoint
_BEST = "best/"  # the best epoch's adapter, kept in each checkpoint beside the last one's


def fit(
    model: nn.Module,
    train_batches: Batches,
    val_batches: Iterable[Batch],
    settings: TrainSection,
    *,
    class_weights: Tensor | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    save_every: float = 300.0,
) -> Fit:
    """Train the attached adapters and leave the best epoch's on the model.

    The best epoch is the one with the highest validation accuracy, among equals the lowest validation loss.

    Args:
        model: A model with adapters; only they change.
        train_batches: Batches to learn from.
        val_batches: Batches to choose the best epoch on.
        settings: Epochs, rates and the rest.
        class_weights: Weight of each class in the loss, (classes,).
        checkpoints: Directory for `last`, written after each epoch and, in a single process, within long ones and
            when SIGINT or SIGTERM comes. Default: none is written, and a signal acts at once.
        resume: Go on from `last`, if there is one.
        watcher: Is told of batches and epochs.
        save_every: Seconds between checkpoints within an epoch.

    Returns:
        The history and the best epoch.

    Raises:
        RunError: If the loss is not finite, naming epoch and step; or a checkpoint cannot be written or read.
        Interrupted: If SIGINT has come; the state is saved.
        Terminated: If SIGTERM has come; the state is saved.
    """
    engine = Engine(model, train_batches, settings, class_weights)
    last = checkpoints / LAST if checkpoints is not None else None
    alone = engine.accelerator.num_processes == 1  # several would have to stop at the same batch
    course = _Course(model, engine, last, save_every=save_every if alone else math.inf)
    try:
        if resume:
            course.resume()
        with stop_requests(listen=alone and last is not None) as request:
            while not course.is_over(settings):
                row = _run_epoch(course, val_batches, watcher, request)
                if watcher is not None:
                    watcher.epoch(row)
                if request.number is not None:
                    raise request.stopped(f"after epoch {row.epoch}")
    finally:
        engine.close()
    history = course.history
    restore_adapter(model, {key: value.to(engine.device) for key, value in course.best.items()})
    return Fit(tuple(history), best_epoch(history), len(history) < settings.epochs)


def _run_epoch(course: _Course, val_batches: Iterable[Batch], watcher: Watcher | None, request: StopRequest) -> Epoch:
    """Run what is left of an epoch, with checkpoints where one is due or asked for."""

    def at_rest(position: Position) -> None:
        if request.number is not None:
            course.keep(position)
            raise request.stopped(f"in epoch {position.epoch}, after batch {position.batches}")
        if course.is_due():
            course.keep(position)

    start = course.position
    try:
        row = course.engine.run_epoch(start, val_batches, watcher=watcher, at_rest=at_rest)
    except RuntimeError:
        if request.number is None:
            raise
        # a signal to the whole group ends the workers too; the last checkpoint stands
        raise request.stopped(f"in epoch {start.epoch}") from None
    course.finish(row)
    return row


class _Course:
    """How far a training is, and what a checkpoint of it holds."""

    def __init__(self, model: nn.Module, engine: Engine, last: Path | None, *, save_every: float) -> None:
        self.engine = engine
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.position = Position(1)
        self._model, self._last, self._save_every = model, last, save_every
        self._saved = time.monotonic()

    def is_over(self, settings: TrainSection) -> bool:
        """Whether no epoch is left, or none has been better for too long."""
        return len(self.history) >= settings.epochs or is_out_of_patience(self.history, settings.patience)

    def is_due(self) -> bool:
        """Whether the last checkpoint is so old that an epoch is not waited for."""
        return self._last is not None and time.monotonic() - self._saved > self._save_every

    def finish(self, row: Epoch) -> None:
        """Take note of an epoch that has ended."""
        self.history.append(row)
        if best_epoch(self.history) is row:
            self.best = {key: value.detach().clone() for key, value in adapter_tensors(self._model).items()}
        self.position = Position(row.epoch + 1)
        self.keep(self.position)

    def keep(self, position: Position) -> None:
        """Write a checkpoint; a state that has broken down since the last one does not replace it."""
        if self._last is None or not self.engine.accelerator.is_main_process:
            return
        if not all(torch.isfinite(value).all() for value in adapter_tensors(self._model).values()):
            return
        facts = {"history": [asdict(row) for row in self.history], "position": asdict(position)}
        state = capture(self._model, self.engine.optimizer, facts | {"scaler": self.engine.scaler_state()})
        kept = {f"{_BEST}{key}": value.to("cpu") for key, value in self.best.items()}
        write_checkpoint(Checkpoint(state.tensors | kept, state.facts), self._last)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Put the last checkpoint's state back; nothing where there is none."""
        found = None if self._last is None else read_checkpoint(self._last)
        if found is None:
            return
        best = {key.removeprefix(_BEST): value for key, value in found.tensors.items() if key.startswith(_BEST)}
        rest = {key: value for key, value in found.tensors.items() if not key.startswith(_BEST)}
        facts = reinstate(Checkpoint(rest, found.facts), self._model, self.engine.optimizer)
        self.engine.restore_scaler(facts.get("scaler"))
        self.history, self.best = [Epoch(**row) for row in facts["history"]], best
        self.position = Position(**facts.get("position", {"epoch": len(self.history) + 1}))
        if found.damaged is not None and self.engine.accelerator.is_main_process:
            discard_checkpoint(found.damaged)
