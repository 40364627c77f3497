"""Processes that start in milliseconds: forked from one that has imported everything, so that kills hit the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

HEAVY = ("accelerate", "matplotlib.pyplot", "convpeft.cli", "convpeft.commands.training", "convpeft.training.runs")


class Server:
    """Forks a process for each piece of Python code it is given; each has its own session and log file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._number = folder, 0
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._ask({"hello": True}) == {"hello": True}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, code: str, **environment: str) -> Forked:
        """Run code in a new process."""
        self._number += 1
        log = self.folder / f"{self._number}.log"
        pid = self._ask({"code": code, "environment": environment, "log": str(log)})["pid"]
        return Forked(self, pid, log)

    def convpeft(self, *words: object, save_every: float | None = None, **environment: str) -> Forked:
        """Run a command in a new process; seconds between checkpoints within an epoch may be chosen."""
        often = f"from convpeft.training.loop import fit\nfit.__kwdefaults__['save_every'] = {save_every}\n"
        code = f"from convpeft.cli import main\nmain({[str(word) for word in words]!r})\n"
        return self.start((often if save_every is not None else "") + code, **environment)

    def wait(self, pid: int, timeout: float) -> int | None:
        """Exit status, negative for a signal, or None while it runs."""
        return self._ask({"wait": pid, "timeout": timeout})["status"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Forked:
    """One process."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self._server, self.pid, self._log = server, pid, log

    def wait(self, timeout: float = 120.0) -> int | None:
        """Exit status, negative for a signal, or None while it runs."""
        return self._server.wait(self.pid, timeout)

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process alone with SIGKILL; what it has started is left to end by itself."""
        self.send(signal.SIGKILL)
        self.wait()

    def has_left_nobody(self, timeout: float = 10.0) -> bool:
        """Whether all processes that it has started end in this time."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False

    def said(self) -> str:
        """What it has printed on both streams."""
        return self._log.read_text()


def _serve() -> None:
    import importlib

    import torch

    import convpeft._torchvision  # noqa: F401

    torch.set_num_threads(1)
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {"hello": True}
        if "code" in request:
            sys.stdout.flush()
            reply = {"pid": os.fork()}
            if not reply["pid"]:
                _become(request)
                return
        elif "wait" in request:
            reply = {"status": _wait(request["wait"], time.monotonic() + request["timeout"])}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _become(request: dict[str, Any]) -> None:
    os.setsid()
    os.environ.update(request["environment"])
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, request["log"], os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(path, flags), number)
    os.dup2(1, 2)
    exec(request["code"], {"__name__": "__main__"})


_ended: dict[int, int] = {}


def _wait(pid: int, limit: float) -> int | None:
    while pid not in _ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            _ended[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > limit:
            return None
        else:
            time.sleep(0.002)
    return _ended[pid]


if __name__ == "__main__":
    _serve()
