"""Copies of the project to plant faults in, and test runs that see the copy and nothing else of convpeft."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutants import mutants_watch
from mutants.fault import Fault

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt")
_DROPPED = ("CONVPEFT_DATA", "PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONPYCACHEPREFIX")
_LIMIT = 300  # seconds that the tests of one fault may take
_PLANTED = 1_000_000_000  # modification time of a planted file, so that no compiled file of the right one fits it


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        fault: The fault.
        caught_by: The first test that failed; None where it survived.
        problem: Why nothing can be said, or "".
        seconds: How long its tests took.
    """

    fault: Fault
    caught_by: str | None
    problem: str = ""
    seconds: float = 0.0


@dataclass
class Reports:
    """Tests by what became of them."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # could not be collected
    problem: str = ""


class Runs:
    """Test processes that are going on; all of them end when the command does."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, command: Sequence[str], *, folder: Path, environment: dict[str, str], limit: float) -> str | None:
        """Run a command in a process group of its own; what it said, or None where it took too long."""
        with self._lock:
            if self.stopped:
                raise InterruptedError
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        try:
            return process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """End every process, and start no more."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and whatever its tests have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Tree:
    """A copy of the project in which faults are planted, one at a time."""

    def __init__(self, folder: Path, runs: Runs, *, of: Path = ROOT) -> None:
        self._folder, self._runs, self._planted = folder, runs, 0
        ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
        for name in FOLDERS:
            shutil.copytree(of / name, folder / name, ignore=ignored)
        for name in FILES:
            shutil.copy2(of / name, folder / name)
        (folder / "watch").mkdir()
        shutil.copy2(Path(mutants_watch.__file__), folder / "watch")

    def attempt(self, fault: Fault) -> Outcome:
        """Plant a fault, run its tests, and take it out again."""
        began = time.perf_counter()
        file = self._folder / "src" / "convpeft" / fault.file
        try:
            right = file.read_text(encoding="utf-8")
            wrong = fault.plant(right)
        except (OSError, ValueError) as error:
            return Outcome(fault, None, str(error))
        times = file.stat()
        self._planted += 1
        try:
            file.write_text(wrong, encoding="utf-8")
            os.utime(file, (_PLANTED + self._planted,) * 2)
            reports = self.test(fault.tests, "-x")
        finally:
            file.write_text(right, encoding="utf-8")
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        seconds = time.perf_counter() - began
        return Outcome(fault, next(iter(reports.failed), None), reports.problem, seconds)

    def test(self, tests: Sequence[str], *options: str, limit: float = _LIMIT) -> Reports:
        """Run tests on the copy."""
        report = self._folder / "report.json"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", *tests, "-q", "-p", "mutants_watch", "--tb=line", *options]
        command += [
            f"--hypothesis-profile={mutants_watch.PROFILE}",
            f"--basetemp={self._folder / 'temporary'}",
            f"--timeout={limit / 2}",
        ]
        environment = {key: value for key, value in os.environ.items() if key not in _DROPPED} | {
            "PYTHONPATH": os.pathsep.join(map(str, (self._folder / "src", self._folder / "watch"))),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            mutants_watch.SOURCE: str(self._folder / "src"),
            mutants_watch.REPORT: str(report),
        }
        said = self._runs.run(command, folder=self._folder, environment=environment, limit=limit)
        if said is None:
            return Reports(problem=f"no end after {limit:g} seconds")
        if not report.is_file():
            return Reports(problem=f"pytest did not come to its end: {_tail(said)}")
        found = Reports(**json.loads(report.read_text(encoding="utf-8")))
        if found.broken or not (found.passed or found.failed):
            found.problem = f"the tests cannot be run: {_tail(said)}"
        return found


def _tail(said: str) -> str:
    return " | ".join(line for line in said.splitlines()[-6:] if line.strip())
