"""The training loop: from an adapted model and batches to its best state, one epoch after the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from convpeft.training.checkpoints import restore_adapter
from convpeft.training.course import Course
from convpeft.training.engine import Batch, Batches, Engine
from convpeft.training.history import Epoch, Fit, Position, Watcher, best_epoch
from convpeft.training.recipe import TrainSection
from convpeft.training.stopping import StopRequest, stop_requests

LAST = "last"  # the newest checkpoint


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
        checkpoints: Directory for `last`, written after each epoch, within long ones, and when SIGINT or SIGTERM
            comes; of several processes, one that gets a signal stops all at the same batch. Default: none is
            written, and a signal acts at once.
        resume: Go on from `last`, if there is one.
        watcher: Is told of batches and epochs.
        save_every: Seconds between checkpoints within an epoch.

    Returns:
        The history and the best epoch.

    Raises:
        RunError: If loss, gradient or adapter are not finite, naming epoch and batch; or a checkpoint cannot be
            written or read.
        Interrupted: If SIGINT has come; the state is saved.
        Terminated: If SIGTERM has come; the state is saved.
    """
    engine = Engine(model, train_batches, settings, class_weights)
    last = checkpoints / LAST if checkpoints is not None else None
    course = Course(model, engine, last, save_every=save_every)
    try:
        if resume:
            course.resume()
        with stop_requests(listen=last is not None) as request:
            while not course.is_over(settings):
                row = _run_epoch(course, val_batches, watcher, request)
                if watcher is not None:
                    watcher.epoch(row)
                if course.is_told_to_stop(request):
                    raise request.stopped(f"after epoch {row.epoch}")
    finally:
        engine.close()
    history = course.history
    restore_adapter(model, {key: value.to(engine.device) for key, value in course.best.items()})
    return Fit(tuple(history), best_epoch(history), len(history) < settings.epochs, engine.choice.plan)


def _run_epoch(course: Course, val_batches: Iterable[Batch], watcher: Watcher | None, request: StopRequest) -> Epoch:
    """Run what is left of an epoch, with checkpoints where one is due or asked for."""

    def at_rest(position: Position) -> None:
        stop, due = course.is_told_to_stop(request), course.is_due()
        if stop or due:
            course.keep(position)
        if stop:
            raise request.stopped(f"in epoch {position.epoch}, after batch {position.batches}")

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
