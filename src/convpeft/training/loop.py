"""The training loop: from an adapted model and batches to its best state, one epoch after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from convpeft.counting import after_step, param_groups, penalty, trainable_parameters
from convpeft.errors import ModelError, RunError
from convpeft.evaluation import predict_logits
from convpeft.training.checkpoints import (
    Checkpoint,
    adapter_tensors,
    capture,
    read_checkpoint,
    reinstate,
    restore_adapter,
    write_checkpoint,
)
from convpeft.training.recipe import TrainSection

Batch = tuple[Tensor, Tensor, Tensor]  # images (batch, channels, height, width), labels (batch), index (batch)


class Batches(Protocol):
    """Batches of one split; the order of an epoch is a function of the seed and the epoch."""

    @property
    def loader(self) -> Any:
        """The torch DataLoader inside."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        ...

    def __len__(self) -> int: ...


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
class Fit:
    """Outcome of the loop; the model holds the best epoch's adapter."""

    history: tuple[Epoch, ...]
    best: Epoch
    stopped_early: bool


class Watcher(Protocol):
    """Sees the training go on, for a progress bar."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """A batch of so many images was seen."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """An epoch ended."""
        ...


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
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != settings.precision:
        AcceleratorState._reset_state()  # one process may train several recipes; accelerate keeps the first precision
    accelerator = Accelerator(mixed_precision=settings.precision)
    optimizer = _make_optimizer(model, settings)
    base_rates = [float(group["lr"]) for group in optimizer.param_groups]
    own_forward = model.__dict__.get("forward")
    wrapped, prepared, loader = accelerator.prepare(model, optimizer, train_batches.loader)
    weights = None if class_weights is None else class_weights.to(accelerator.device)
    criterion = nn.CrossEntropyLoss(weight=weights, label_smoothing=settings.label_smoothing)
    steps_an_epoch = math.ceil(len(loader) / settings.accumulate)
    total_steps = steps_an_epoch * settings.epochs

    history: list[Epoch] = []
    best_tensors: dict[str, Tensor] = {}
    last = checkpoints / "last" if checkpoints is not None else None
    found = read_checkpoint(last) if resume and last is not None else None
    if found is not None:
        best = {k.removeprefix("best/"): v for k, v in found.tensors.items() if k.startswith("best/")}
        kept = {k: v for k, v in found.tensors.items() if not k.startswith("best/")}
        facts = reinstate(Checkpoint(kept, found.facts), model, optimizer)
        history = [Epoch(**row) for row in facts["history"]]
        best_tensors = best

    stopped = False
    try:
        for number in range(len(history) + 1, settings.epochs + 1):
            if _out_of_patience(history, settings.patience):
                stopped = True
                break
            began = time.perf_counter()
            train_batches.set_epoch(number)
            wrapped.train()
            seen, loss_sum, right = 0, 0.0, 0
            for index, (images, labels, _) in enumerate(loader):
                step = (number - 1) * steps_an_epoch + index // settings.accumulate
                factor = _schedule(step, total_steps, settings)
                for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = base_rate * factor
                logits = logits_of(wrapped(images))
                loss = criterion(logits.float(), labels)
                extra = penalty(model)
                objective = loss if extra is None else loss + extra
                if not torch.isfinite(objective):
                    raise RunError(
                        f"the loss is {float(objective.detach())} at epoch {number}, batch {index + 1}. "
                        f"Lower train.lr (it is {max(base_rates):g}) or train.clip."
                    )
                rest = len(loader) - index + index % settings.accumulate  # the last step of an epoch may have fewer
                accelerator.backward(objective / min(settings.accumulate, rest))
                if (index + 1) % settings.accumulate == 0 or index + 1 == len(loader):
                    if settings.clip > 0:
                        accelerator.clip_grad_norm_(trainable_parameters(model), settings.clip)
                    prepared.step()
                    prepared.zero_grad(set_to_none=True)
                    after_step(model)
                count = len(labels)
                seen, loss_sum = seen + count, loss_sum + float(loss.detach()) * count
                right += int((logits.detach().argmax(1) == labels).sum())
                if watcher is not None:
                    watcher.step(number, count, loss_sum / seen, right / seen)
            seconds = time.perf_counter() - began
            try:
                val_loss, val_accuracy = _validate(model, val_batches, accelerator.device)
            except ModelError as error:
                raise RunError(f"validation after epoch {number}: {error}") from None
            history.append(
                Epoch(
                    number,
                    loss_sum / max(seen, 1),
                    right / max(seen, 1),
                    val_loss,
                    val_accuracy,
                    float(optimizer.param_groups[0]["lr"]),
                    seconds,
                    seen / seconds,
                )
            )
            if _best(history) is history[-1]:
                best_tensors = {key: value.detach().clone() for key, value in adapter_tensors(model).items()}
            if last is not None and accelerator.is_main_process:
                facts = {"history": [asdict(row) for row in history]}
                state = capture(model, optimizer, facts)
                extra_tensors = {f"best/{key}": value.to("cpu") for key, value in best_tensors.items()}
                write_checkpoint(Checkpoint(state.tensors | extra_tensors, state.facts), last)
            if watcher is not None:
                watcher.epoch(history[-1])
    finally:
        accelerator.free_memory()
        _take_off(model, own_forward)
    restore_adapter(model, {key: value.to(accelerator.device) for key, value in best_tensors.items()})
    return Fit(tuple(history), _best(history), stopped)


def logits_of(answer: Any) -> Tensor:
    """The main logits; networks with auxiliary classifiers answer with several in train mode."""
    if isinstance(answer, Tensor):
        return answer
    return cast(Tensor, answer.logits if hasattr(answer, "logits") else answer[0])


def _take_off(model: nn.Module, own_forward: Any) -> None:
    """Remove the forward that accelerate puts on the model for mixed precision; its own unwrapping leaves one."""
    model.__dict__.pop("_original_forward", None)
    model.__dict__.pop("forward", None)
    if own_forward is not None:
        model.__dict__["forward"] = own_forward


def _make_optimizer(model: nn.Module, settings: TrainSection) -> torch.optim.Optimizer:
    groups = param_groups(model, lr=settings.lr, weight_decay=settings.weight_decay)  # each with its rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum)
    return torch.optim.AdamW(groups)


def _schedule(step: int, total: int, settings: TrainSection) -> float:
    """Share of the learning rate at one step: linear warm-up, then cosine to zero or constant."""
    warm = max(1, round(settings.warmup * total)) if settings.warmup > 0 else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _validate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the validation split."""
    predictions = predict_logits(model, batches, device=device)
    logits = torch.from_numpy(predictions.logits).double()
    labels = torch.from_numpy(predictions.labels)
    loss = nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def _best(history: Sequence[Epoch]) -> Epoch:
    return max(history, key=lambda row: (row.val_accuracy, -row.val_loss))


def _out_of_patience(history: Sequence[Epoch], patience: int) -> bool:
    return bool(patience and history and len(history) - _best(history).epoch >= patience)
