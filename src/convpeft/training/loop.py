"""The training loop: from an adapted model and batches to its best state, one epoch after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from convpeft.training.checkpoints import (
    Checkpoint,
    adapter_tensors,
    capture,
    read_checkpoint,
    reinstate,
    restore_adapter,
    write_checkpoint,
)
from convpeft.training.engine import Batch, Batches, Engine
from convpeft.training.history import Epoch, Fit, Watcher, best_epoch, is_out_of_patience
from convpeft.training.recipe import TrainSection

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
) -> Fit:
    """Train the attached adapters and leave the best epoch's on the model.

    The best epoch is the one with the highest validation accuracy, among equals the lowest validation loss.

    Args:
        model: A model with adapters; only they change.
        train_batches: Batches to learn from.
        val_batches: Batches to choose the best epoch on.
        settings: Epochs, rates and the rest.
        class_weights: Weight of each class in the loss, (classes,).
        checkpoints: Directory for `last`, written after each epoch. Default: none is written.
        resume: Go on from `last`, if there is one.
        watcher: Is told of batches and epochs.

    Returns:
        The history and the best epoch.

    Raises:
        RunError: If the loss is not finite, naming epoch and step; or a checkpoint cannot be written or read.
    """
    engine = Engine(model, train_batches, settings, class_weights)
    last = checkpoints / "last" if checkpoints is not None else None
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    try:
        if resume and last is not None:
            history, best = _resume(last, model, engine)
        while len(history) < settings.epochs and not is_out_of_patience(history, settings.patience):
            history.append(engine.run_epoch(len(history) + 1, val_batches, watcher))
            if best_epoch(history) is history[-1]:
                best = {key: value.detach().clone() for key, value in adapter_tensors(model).items()}
            if last is not None and engine.accelerator.is_main_process:
                _keep(last, model, engine, history, best)
            if watcher is not None:
                watcher.epoch(history[-1])
    finally:
        engine.close()
    restore_adapter(model, {key: value.to(engine.device) for key, value in best.items()})
    return Fit(tuple(history), best_epoch(history), len(history) < settings.epochs)


def _keep(last: Path, model: nn.Module, engine: Engine, history: list[Epoch], best: dict[str, Tensor]) -> None:
    state = capture(model, engine.optimizer, {"history": [asdict(row) for row in history]})
    kept = {f"{_BEST}{key}": value.to("cpu") for key, value in best.items()}
    write_checkpoint(Checkpoint(state.tensors | kept, state.facts), last)


def _resume(last: Path, model: nn.Module, engine: Engine) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Put the last checkpoint's state back; nothing where there is none."""
    found = read_checkpoint(last)
    if found is None:
        return [], {}
    best = {key.removeprefix(_BEST): value for key, value in found.tensors.items() if key.startswith(_BEST)}
    rest = {key: value for key, value in found.tensors.items() if not key.startswith(_BEST)}
    facts = reinstate(Checkpoint(rest, found.facts), model, engine.optimizer)
    return [Epoch(**row) for row in facts["history"]], best
