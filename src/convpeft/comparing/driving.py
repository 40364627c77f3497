"""Do what is left of a comparison with a few processes at once, beside others that work on the same directory."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from convpeft.comparing.cells import Cell, Study
from convpeft.comparing.grid import Grid
from convpeft.comparing.store import RESULTS, read_results
from convpeft.comparing.study import best_trial, check_optuna
from convpeft.comparing.worker import BROKEN, BUSY, STOPPED, Job, failed_row, record, run_job
from convpeft.errors import RunError

_LOOK = 0.5  # seconds between looks at what other processes have recorded
_AGAIN = 2.0  # seconds before a job that somebody else has is tried again
_PRELOAD = ("convpeft.training.runs", "convpeft.training.results", "convpeft.comparing.worker")


class Viewer(Protocol):
    """Is told of what goes on, for a table and a bar."""

    def update(self, rows: Mapping[str, dict[str, Any]], running: list[str]) -> None:
        """So much is done; these jobs are running here."""
        ...

    def finished(self, row: Mapping[str, Any]) -> None:
        """A row is new, whoever has made it."""
        ...


@dataclass
class _Crew:
    """The processes that are running, and jobs that somebody else had when they were last tried."""

    running: dict[Any, Job] = field(default_factory=dict[Any, Job])
    elsewhere: dict[str, float] = field(default_factory=dict[str, float])
    ended: set[str] = field(default_factory=set[str])

    def is_free(self, job: Job) -> bool:
        """Whether a job may be tried now."""
        taken = any(job.key == each.key for each in self.running.values())
        return not taken and time.monotonic() >= self.elsewhere.get(job.key, 0.0)


def drive(grid: Grid, out: Path, *, workers: int, again: bool, viewer: Viewer) -> dict[str, dict[str, Any]]:
    """Do every run and trial that is not recorded; what is recorded is not done again.

    Args:
        grid: The runs.
        out: Directory of the comparison.
        workers: Processes at once.
        again: Do what is recorded as failed once more.
        viewer: Is told of what goes on.

    Returns:
        The rows of the grid, by key.

    Raises:
        RunError: If results cannot be written, or Optuna is needed and missing.
        KeyboardInterrupt: If Ctrl-C came; what was running is saved and goes on the next time.
    """
    if grid.tuning is not None:
        check_optuna()
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS
    retried = {key for key, row in read_results(path).items() if again and row["status"] == "failed"}
    before = read_results(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    crew = _Crew()
    seen = set(before) - retried
    with _stops() as stop:
        try:
            while True:
                known = read_results(path)
                retried = {key for key in retried - crew.ended if known[key] == before[key]}
                rows = {key: row for key, row in known.items() if key not in retried}
                for key in rows.keys() - seen:
                    viewer.finished(rows[key])
                seen |= rows.keys()
                waiting = jobs_left(grid, rows)
                if stop.came and not crew.running:
                    raise KeyboardInterrupt
                if not waiting and not crew.running:
                    return {key: row for key, row in rows.items() if key in keys_of(grid)}
                ready = [job for job in waiting if crew.is_free(job) and job.tuned is not None]
                for job in ready[: max(0, workers - len(crew.running))] if not stop.came else []:
                    threads = 1 if workers > 1 else None
                    process = context.Process(
                        target=run_job, args=(job, out), kwargs={"threads": threads, "again": again}, daemon=False
                    )
                    process.start()
                    crew.running[process] = job
                viewer.update(rows, [job.title for job in crew.running.values()])
                _reap(crew, out, stop)
        finally:
            for process in crew.running:
                process.terminate()
            for process in crew.running:
                process.join(15)


def jobs_left(grid: Grid, rows: Mapping[str, dict[str, Any]]) -> list[Job]:
    """Trials and runs without a row, in the order of the grid; a run of a study that is not over has no values yet."""
    found: dict[str, Job] = {}
    for cell in grid.cells:
        if cell.study is not None:
            found |= {job.key: job for job in _trials(cell, cell.study, rows)}
        if cell.key not in rows:
            tuned = {} if cell.study is None else _chosen(cell.study, rows)
            found[cell.key] = Job(cell.arm, cell.title, cell.key, cell=cell, tuned=tuned)
    return sorted(found.values(), key=lambda job: job.study is None)  # trials first: runs wait for them


def keys_of(grid: Grid) -> set[str]:
    """The keys of all runs and trials of a grid."""
    trials = {study.trial_key(number) for study in grid.studies for number in range(study.trials)}
    return trials | {cell.key for cell in grid.cells}


def _trials(cell: Cell, study: Study, rows: Mapping[str, dict[str, Any]]) -> list[Job]:
    setting = "".join(f", {key} {value}" for key, value in cell.setting.items())
    return [
        Job(
            cell.arm,
            f"{cell.arm}{setting}, trial {number + 1} of {study.trials}",
            study.trial_key(number),
            tuned=study.point(number),
            study=study,
            number=number,
        )
        for number in range(study.trials)
        if study.trial_key(number) not in rows
    ]


def _chosen(study: Study, rows: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    if any(study.trial_key(number) not in rows for number in range(study.trials)):
        return None
    best = best_trial(study, rows)
    return {} if best is None else best["tuned"]


def _reap(crew: _Crew, out: Path, stop: _Stop) -> None:
    """Wait a little, and take note of the processes that have ended."""
    if not crew.running:
        time.sleep(_LOOK)
        return
    wait([process.sentinel for process in crew.running], timeout=_LOOK)
    for process in [each for each in crew.running if each.exitcode is not None]:
        job = crew.running.pop(process)
        status = process.exitcode
        crew.ended |= {job.key} if status == 0 else set()
        if status == BUSY:
            crew.elsewhere[job.key] = time.monotonic() + _AGAIN
        elif status == BROKEN:
            raise RunError(f"{out}: a run could not be recorded. What it said is in {out / 'work' / job.key}.log.")
        elif status == STOPPED:
            stop.came = True
        elif status != 0 and not stop.came and job.key not in read_results(out / RESULTS):
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            record(out, job, failed_row(job, f"its process ended with {name}, as for lack of memory."))


@dataclass
class _Stop:
    """Whether Ctrl-C or a request to end has come."""

    came: bool = False


@contextmanager
def _stops() -> Generator[_Stop]:
    """Note SIGINT and SIGTERM, which runs that share the terminal get too; whoever is running saves and ends."""
    stop = _Stop()

    def note(number: int, _: FrameType | None) -> None:
        if stop.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.came = True
        for child in multiprocessing.active_children():
            child.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
