"""One mode on one network in a process of its own: it builds, then does what it is told, an answer each."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from measures import alternate, operations, peak_growth, saved_bytes, seconds, without_gradients
from plan import GPU_STEPS, INFERENCE_ROUNDS, MEMORY_STEPS, MODES, UNTIMED_STEPS, Cell
from trainee import NotOfferedError, images_for_inference

_LONGEST = 240  # characters of an error


class Worker:
    """Answers by the name of the command."""

    def __init__(self, cell: Cell) -> None:
        self._cell, self._steps = cell, 1 if cell.device == "cpu" else GPU_STEPS
        self._trainee = importlib.import_module(f"with_{MODES[cell.mode].library}").make(cell)

    def start(self) -> dict[str, Any]:
        """The first steps: what memory they take; they also warm up."""
        growth = peak_growth(self._trainee.step, MEMORY_STEPS, self._cell.device)
        return {"memory_bytes": growth, "trainable": self._trainee.trainable, "note": self._trainee.note}

    def step(self) -> float:
        """The seconds of one step, after some off the clock."""
        for _ in range(UNTIMED_STEPS):
            self._trainee.step()
        return seconds(self._trainee.step, self._steps)

    def count(self) -> dict[str, Any]:
        """Saved activations and operations; a step for each."""
        saved = saved_bytes(self._trainee.forward, self._trainee.own())
        forward, backward = operations(self._trainee.forward, self._trainee.backward)
        return {"saved_bytes": saved, "operations_forward": forward, "operations_backward": backward} | {
            "chosen": self._trainee.chosen()
        }

    def merge(self) -> dict[str, list[float]]:
        """Merge, and let the result and a plain network take turns."""
        calls = self._trainee.merged_and_plain()
        images = images_for_inference(self._cell)
        ratios = alternate(*(without_gradients(call, images) for call in calls), INFERENCE_ROUNDS, self._steps)
        return {"inference_ratios": [round(ratio, 4) for ratio in ratios]}


def serve(pipe: Connection, cell: Cell, threads: int) -> None:
    """Build, and answer commands until the other side closes; an error is an answer too."""
    import torch

    torch.set_num_threads(threads)
    os.dup2(2, 1)  # what a library prints is no result
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as home:
        os.environ["KERAS_HOME"] = os.environ["XDG_CACHE_HOME"] = home
        worker: list[Worker] = []
        pipe.send(_answer(lambda: worker.append(Worker(cell))))
        while True:
            try:
                command = pipe.recv()
            except EOFError:
                return
            pipe.send(_answer(getattr(worker[0], command)))


def do_alone(pipe: Connection, module: str, words: dict[str, Any], threads: int) -> None:
    """Answer with what `measure` of a module finds."""
    import torch

    torch.set_num_threads(threads)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    pipe.send(_answer(lambda: importlib.import_module(module).measure(**words)))


def _answer(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"found": call()}
    except NotOfferedError as error:
        return {"error": str(error), "absent": True}
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": line[:_LONGEST], "absent": False}
