"""How far a training is, and the checkpoints that take it up again there; several processes keep one together."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from convpeft.errors import OptionError, RunError, plainly
from convpeft.training.checkpoints import (
    Checkpoint,
    adapter_tensors,
    capture,
    discard_checkpoint,
    read_checkpoint,
    reinstate,
    write_checkpoint,
)
from convpeft.training.choosing import RECORD
from convpeft.training.engine import Engine
from convpeft.training.history import Epoch, Position, best_epoch, is_out_of_patience
from convpeft.training.processes import agree, from_all
from convpeft.training.recipe import TrainSection
from convpeft.training.stopping import StopRequest

_BEST = "best/"  # the best epoch's adapter, kept in each checkpoint beside the last one's
_RANDOM = "random/torch"  # random state of the main process; those of the others have their number after it


class Course:
    """A training on its way.

    Args:
        model: A model with adapters.
        engine: What trains it.
        last: The newest checkpoint's directory; None for none.
        save_every: Seconds between checkpoints within an epoch.
    """

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

    def is_told_to_stop(self, request: StopRequest) -> bool:
        """Whether a signal has come, to this process or to another one; every process asks at every batch."""
        if self._last is None:
            return False
        (number,) = agree(request.number or 0, device=self.engine.device)
        if number:  # else one that comes at this very moment would be lost
            request.number = number
        return number > 0

    def is_due(self) -> bool:
        """Whether the last checkpoint is so old that an epoch is not waited for; every process asks."""
        if self._last is None:
            return False
        (due,) = agree(int(time.monotonic() - self._saved > self._save_every), device=self.engine.device)
        return due > 0

    def finish(self, row: Epoch) -> None:
        """Take note of an epoch that has ended.

        Raises:
            RunError: If its adapter is not finite; the last checkpoint stands.
        """
        broken = self._first_broken()
        if broken is not None:
            raise RunError(f"{broken} holds NaN or infinity after epoch {row.epoch}. Lower train.lr.")
        self.history.append(row)
        if best_epoch(self.history) is row:
            self.best = {key: value.detach().clone() for key, value in adapter_tensors(self._model).items()}
        self.position = Position(row.epoch + 1)
        self.keep(self.position)

    def keep(self, position: Position) -> None:
        """Write a checkpoint; a state that has broken down since the last one does not replace it."""
        if self._last is None:
            return
        device = self.engine.device
        places = from_all(torch.tensor(list(asdict(position).values()), dtype=torch.float64), device=device)
        states = from_all(torch.get_rng_state(), device=device)
        if self.engine.accelerator.is_main_process and self._first_broken() is None:
            facts = {
                "history": [asdict(row) for row in self.history],
                "position": asdict(position),
                "places": [each.tolist() for each in places],
                "scaler": self.engine.scaler_state(),
                RECORD: None if self.engine.choice.plan is None else self.engine.choice.plan.to_dict(),
            }
            state = capture(self._model, self.engine.optimizer, facts)
            others = {f"{_RANDOM}.{number}": each for number, each in enumerate(states) if number}
            best = {f"{_BEST}{key}": value.to("cpu") for key, value in self.best.items()}
            write_checkpoint(Checkpoint(state.tensors | others | best, state.facts), self._last)
        self.engine.accelerator.wait_for_everyone()
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Put the last checkpoint's state back; nothing where there is none.

        Raises:
            RunError: If it does not fit this run, or was written within an epoch of another number of processes.
        """
        found = None if self._last is None else read_checkpoint(self._last)
        if found is None:
            return
        try:
            self._put_back(found)
        except (AttributeError, IndexError, KeyError, OptionError, TypeError, ValueError) as error:
            raise RunError(f"{self._last}: is not of this run ({plainly(error)}). Start the run anew.") from None
        self.engine.accelerator.wait_for_everyone()  # all have read it
        if found.damaged is not None and self.engine.accelerator.is_main_process:
            discard_checkpoint(found.damaged)

    def _put_back(self, found: Checkpoint) -> None:
        places, accelerator = found.facts["places"], self.engine.accelerator
        if found.facts["position"]["batches"] and len(places) != accelerator.num_processes:
            raise RunError(
                f"{self._last}: was written within an epoch by {len(places)} processes, and "
                f"{accelerator.num_processes} go on. Resume with {len(places)}."
            )
        own = accelerator.process_index
        best = {key.removeprefix(_BEST): value for key, value in found.tensors.items() if key.startswith(_BEST)}
        rest = {key: value for key, value in found.tensors.items() if not key.startswith((_BEST, f"{_RANDOM}."))}
        rest[_RANDOM] = found.tensors.get(f"{_RANDOM}.{own}", rest[_RANDOM])
        facts = reinstate(Checkpoint(rest, found.facts), self._model, self.engine.optimizer)
        self.engine.restore_scaler(facts.get("scaler"))
        self.engine.choice.repeat(facts)
        self.history, self.best = [Epoch(**row) for row in facts["history"]], best
        self.position = Position(**facts["position"])
        if self.position.batches:
            epoch, batches, images, loss_sum, right, seconds = places[own]
            self.position = Position(int(epoch), int(batches), int(images), loss_sum, int(right), seconds)

    def _first_broken(self) -> str | None:
        """The first adapter tensor with a number that is not finite."""
        tensors = adapter_tensors(self._model).items()
        return next((key for key, value in tensors if not torch.isfinite(value).all()), None)
