"""SIGINT and SIGTERM ask a training to stop at its next batch, so that it can save where it is."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_AGAIN = 1.0  # seconds; a second Ctrl-C after this stops at once, whatever is lost


class Stopped(BaseException):
    """What a stopped training raises, as one of the two below; `status` is the one that a shell expects."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.status = 128 + number


class Interrupted(Stopped, KeyboardInterrupt):
    """Someone has pressed Ctrl-C, and the training was saved."""


class Terminated(Stopped, SystemExit):
    """The system or a scheduler wants the process to end, and the training was saved; uncaught, it does end."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(number, where)
        self.code = self.status


class StopRequest:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._came = 0.0

    def receive(self, number: int, _: FrameType | None) -> None:
        """Note a signal; a later second Ctrl-C does not wait for the next batch."""
        if number == signal.SIGINT and self.number == number and time.monotonic() - self._came > _AGAIN:
            raise KeyboardInterrupt
        if self.number is None:
            self.number, self._came = number, time.monotonic()

    def stopped(self, where: str) -> Interrupted | Terminated:
        """The error to raise once everything is saved."""
        number = self.number or signal.SIGINT
        return Interrupted(number, where) if number == signal.SIGINT else Terminated(number, where)


@contextmanager
def stop_requests(*, listen: bool = True) -> Generator[StopRequest]:
    """Note SIGINT and SIGTERM for the time of the block instead of ending the process.

    Python takes signals in its main thread only: a training in another thread leaves them to whoever is there.

    Args:
        listen: Whether to take signals at all.
    """
    request = StopRequest()
    taken: dict[signal.Signals, Any] = {}
    try:
        if listen and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                # whoever ignores a signal means it (nohup, a job in the background); None cannot be put back
                if handler not in (signal.SIG_IGN, None):
                    taken[number] = handler
                    signal.signal(number, request.receive)
        yield request
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
