"""The command's side of a worker: start it, ask it, and put up with its death."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from plan import Cell
from worker import do_alone, serve

START, PATIENCE, ALONE = 240, 300, 900  # seconds: until a network is built, for an answer, for a whole measurement
_FORK = multiprocessing.get_context("forkserver")


class LostError(Exception):
    """The worker failed; the message is one line. `absent`: the library has no such thing."""

    def __init__(self, message: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


def prepare(threads: int) -> None:
    """Set what every worker inherits; PyTorch is imported once, by the process from which they are forked."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "OMP_PROC_BIND": "true",  # else both threads may share a core while another process has the other
        "OMP_PLACES": "cores",
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "KERAS_BACKEND": "torch",
        "KERAS_TORCH_DEVICE": "cpu",  # no row of Keras on a GPU
    }
    _FORK.set_forkserver_preload(["imports"])


class _Process:
    """A forked process and the pipe to it; every answer has a time limit."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self._pipe, other = _FORK.Pipe()
        self._process = _FORK.Process(target=target, args=(other, *args), daemon=True)
        self._process.start()
        other.close()

    def tell(self, command: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead, and `take` says so
            self._pipe.send(command)

    def take(self, limit: int) -> Any:
        try:
            if not self._pipe.poll(limit):
                raise LostError(f"no answer in {limit} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise LostError(f"the process died with status {self._process.exitcode}") from None
        if "error" in answer:
            raise LostError(answer["error"], absent=answer["absent"])
        return answer["found"]

    def close(self) -> None:
        """Let it end, or end it."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Member:
    """One mode on one network."""

    def __init__(self, cell: Cell, *, threads: int) -> None:
        self.cell = cell
        self._process = _Process(serve, cell, threads)

    def build(self) -> None:
        self._process.take(START)

    def ask(self, command: str) -> Any:
        self._process.tell(command)
        return self._process.take(PATIENCE)

    def close(self) -> None:
        self._process.close()


def alone(module: str, words: dict[str, Any], *, threads: int) -> Any:
    """What `measure` of a module of this folder finds, in a process of its own."""
    process = _Process(do_alone, module, words, threads)
    try:
        return process.take(ALONE)
    finally:
        process.close()
