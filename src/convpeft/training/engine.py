"""One epoch of optimisation on whatever accelerate finds: CPU, GPU, several of them, reduced precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from convpeft.counting import after_step, param_groups, penalty, plan_training, trainable_parameters
from convpeft.errors import ModelError, RunError
from convpeft.evaluation import predict_logits
from convpeft.training.choosing import Choice
from convpeft.training.compiling import compiled, compiler_errors
from convpeft.training.history import Epoch, Foreteller, Position, Watcher
from convpeft.training.objective import logits_of, lwf_loss
from convpeft.training.options import check_settings
from convpeft.training.processes import on_cpu, share_buffers
from convpeft.training.recipe import TrainSection
from convpeft.training.recomputing import Recomputing
from convpeft.training.starting_point import l2sp_loss

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


class Engine:
    """A model, its optimiser and its batches, prepared for the device.

    Args:
        model: A model with adapters; only they change.
        batches: Batches to learn from.
        settings: Rates and the rest.
        class_weights: Weight of each class in the loss, (classes,).

    Raises:
        OptionError: If settings exclude each other.
        ModelError: If gradient checkpointing is asked for and the model has no blocks.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, settings: TrainSection, class_weights: Tensor | None
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if AcceleratorState._shared_state and AcceleratorState(cpu=on_cpu()).mixed_precision != settings.precision:
            AcceleratorState._reset_state()  # a process may train several recipes; accelerate keeps the first precision
        self.accelerator = Accelerator(cpu=on_cpu(), mixed_precision=settings.precision)
        check_settings(settings, self.accelerator.num_processes)
        self.choice = Choice(model, settings)
        self._recomputing = Recomputing(model) if settings.checkpointing else None
        fused = settings.precision != "fp16" and self.device.type in ("cpu", "cuda")  # a scaler steps by itself
        self.optimizer = _make_optimizer(model, settings, fused=fused)
        self._model, self._batches, self._settings = model, batches, settings
        self._parameters = trainable_parameters(model)
        self._base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._own_forward = model.__dict__.get("forward")
        self._wrapped, self._prepared, self._loader = self.accelerator.prepare(model, self.optimizer, batches.loader)
        self._run = compiled(self._wrapped) if settings.compile else self._wrapped
        weights = None if class_weights is None else class_weights.to(self.device)
        self._criterion = nn.CrossEntropyLoss(weight=weights, label_smoothing=settings.label_smoothing)
        self._steps_an_epoch = math.ceil(len(self._loader) / settings.accumulate)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return cast(torch.device, self.accelerator.device)

    def scaler_state(self) -> dict[str, Any] | None:
        """State of the gradient scaler; None where the precision needs none."""
        return None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()

    def restore_scaler(self, state: dict[str, Any] | None) -> None:
        """Put the gradient scaler's state back."""
        if state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state)

    def close(self) -> None:
        """Take everything off the model that was put on it; accelerate's own unwrapping leaves a forward behind."""
        self.choice.release()
        if self._recomputing is not None:
            self._recomputing.remove()
        self.accelerator.free_memory()
        self._model.__dict__.pop("_original_forward", None)
        self._model.__dict__.pop("forward", None)
        if self._own_forward is not None:
            self._model.__dict__["forward"] = self._own_forward

    def run_epoch(
        self,
        start: Position,
        val_batches: Iterable[Batch],
        *,
        watcher: Watcher | None = None,
        at_rest: Callable[[Position], None] | None = None,
    ) -> Epoch:
        """Train for one epoch, or for the rest of one, validate, and say what it came to.

        Args:
            start: The epoch, and how far it is already.
            val_batches: Batches to measure it on.
            watcher: Is told of batches.
            at_rest: Is called after each batch, when the state is whole, with how far the epoch is.

        Raises:
            RunError: If loss or gradient is not finite, naming epoch and batch; the adapter is as before the step.
        """
        number = start.epoch
        end = self._train(start, watcher, at_rest)
        loss, accuracy, images = self._reduce(end)
        share_buffers(self._model)
        try:
            val_loss, val_accuracy = validate(self._model, _paused(val_batches, end, at_rest), self.device)
        except ModelError as error:
            raise RunError(f"validation after epoch {number}: {error}") from None
        rate = float(self.optimizer.param_groups[0]["lr"])
        return Epoch(number, loss, accuracy, val_loss, val_accuracy, rate, end.seconds, images / end.seconds)

    def _train(
        self,
        start: Position,
        watcher: Watcher | None,
        at_rest: Callable[[Position], None] | None,
    ) -> Position:
        """Train on the batches of an epoch that are left; where that ends."""
        number, steps = start.epoch, self._steps_an_epoch
        self._batches.set_epoch(number)
        self._wrapped.train()
        taken = self._steps_before(number, start.batches)
        plan_training(self._model, epochs=self._settings.epochs, steps_per_epoch=steps, steps_done=taken)
        at, seen, loss_sum, right = start, start.images, start.loss_sum, start.right
        began = time.perf_counter() - start.seconds
        if start.batches:
            self._set_rates((number - 1) * steps + (start.batches - 1) // self._settings.accumulate)
        for index, (images, labels, _) in enumerate(self._rest(start.batches), start.batches):
            self._set_rates((number - 1) * steps + index // self._settings.accumulate)
            self.choice.begin(images, _teller(watcher))
            with compiler_errors() if self._settings.compile else nullcontext():
                logits = self._logits(images)
                loss = self._criterion(logits.float(), labels)
                objective = self._objective(loss, images)
                self._check_finite("loss", objective, number, index)
                self._step(objective, number, index)
            self.choice.settle()
            count = len(labels)
            seen, loss_sum = seen + count, loss_sum + float(loss.detach()) * count
            right += int((logits.detach().argmax(1) == labels).sum())
            if watcher is not None:
                watcher.step(number, count, loss_sum / seen, right / seen)
            at = Position(number, index + 1, seen, loss_sum, right, time.perf_counter() - began)
            if at_rest is not None:
                at_rest(at)
        return at

    def _logits(self, images: Tensor) -> Tensor:
        """The model's main logits. Autocast is on around the model, whose first hook asks for it."""
        with self.accelerator.autocast():
            return logits_of(self._run(images))

    def _objective(self, loss: Tensor, images: Tensor) -> Tensor:
        """The loss with what the methods and the objective add to it."""
        extra = penalty(self._model)
        objective = loss if extra is None else loss + extra
        if self._settings.objective == "lwf":
            kept = lwf_loss(self._model, images, temperature=self._settings.lwf_temperature)
            objective = objective + self._settings.lwf_weight * kept
        if self._settings.objective == "l2-sp":
            objective = objective + self._settings.l2sp_weight * l2sp_loss(self._model)
        return objective

    def _rest(self, done: int) -> Iterable[Batch]:
        """Batches of the epoch after the first `done`; those are not even read."""
        if done == len(self._loader):
            return ()
        return self.accelerator.skip_first_batches(self._loader, done) if done else self._loader

    def _steps_before(self, number: int, batches: int) -> int:
        """Optimiser steps before a batch of an epoch; its last step may have fewer batches."""
        full = batches == len(self._loader)
        return (number - 1) * self._steps_an_epoch + (
            self._steps_an_epoch if full else batches // self._settings.accumulate
        )

    def _reduce(self, end: Position) -> tuple[float, float, int]:
        """Mean loss, accuracy and number of images over all processes."""
        sums = torch.tensor([end.images, end.loss_sum, end.right], dtype=torch.float64, device=self.device)
        total, loss_total, right_total = cast(Tensor, self.accelerator.reduce(sums, reduction="sum")).tolist()
        return loss_total / max(total, 1), right_total / max(total, 1), int(total)

    def _check_finite(self, what: str, value: Tensor, number: int, index: int) -> None:
        if not torch.isfinite(value):
            raise RunError(
                f"the {what} is {float(value.detach())} at epoch {number}, batch {index + 1}. "
                f"Lower train.lr (it is {max(self._base_rates):g}) or train.clip."
            )

    def _step(self, objective: Tensor, number: int, index: int) -> None:
        """Add a batch's gradient; every `accumulate` batches and at the epoch's end, take a step."""
        accumulate, batches = self._settings.accumulate, len(self._loader)
        rest = batches - index + index % accumulate  # the last step of an epoch may have fewer batches
        self.accelerator.backward(objective / min(accumulate, rest))
        if (index + 1) % accumulate and index + 1 < batches:
            return
        norm = self.accelerator.clip_grad_norm_(self._parameters, self._settings.clip or math.inf)
        if self.accelerator.scaler is None:  # a scaler leaves such a step out and tries a smaller scale
            self._check_finite("gradient's norm", cast(Tensor, norm), number, index)
        self._prepared.step()
        after_step(self._model, self.optimizer)
        self._prepared.zero_grad(set_to_none=True)

    def _set_rates(self, step: int) -> None:
        factor = schedule(step, self._steps_an_epoch * self._settings.epochs, self._settings)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor


def schedule(step: int, total: int, settings: TrainSection) -> float:
    """Share of the learning rate at one step: linear warm-up, then cosine to zero or constant."""
    warm = max(1, round(settings.warmup * total)) if settings.warmup > 0 else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _paused(batches: Iterable[Batch], end: Position, at_rest: Callable[[Position], None] | None) -> Iterator[Batch]:
    """Batches of the validation split; it changes nothing, so before each the epoch's training is simply over."""
    for batch in batches:
        if at_rest is not None:
            at_rest(end)
        yield batch


def validate(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the validation split."""
    predictions = predict_logits(model, batches, device=device)
    logits = torch.from_numpy(predictions.logits).double()
    labels = torch.from_numpy(predictions.labels)
    loss = nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def _teller(watcher: Watcher | None) -> Callable[[int, int], None] | None:
    if not isinstance(watcher, Foreteller):
        return None
    return lambda done, total: watcher.prepare("measuring kernels", done, total)


def _make_optimizer(model: nn.Module, settings: TrainSection, *, fused: bool) -> torch.optim.Optimizer:
    groups = param_groups(model, lr=settings.lr, weight_decay=settings.weight_decay)  # each with its rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(groups, fused=fused)
