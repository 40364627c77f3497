"""Train and measure the runs of a grid, as far as they are not there yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answering import MEASURED, measure_all
from corrupting import Corrupted, corrupted_images
from images import lay_out, weights_of
from plan import Transfer

from convpeft.commands.comparing import LiveTable
from convpeft.comparing import Grid
from convpeft.comparing.driving import drive
from convpeft.comparing.store import read_results

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a grid has come to.

    Attributes:
        folder: Of the files that the grid names.
        out: Of the runs.
        rows: Runs and trials by their key.
        measured: The answers to corrupted images, by the key of the run.
        corrupted: These images; None where the task has none.
        weights: The file that the base is from.
    """

    folder: Path
    out: Path
    rows: dict[str, Row]
    measured: dict[str, Row]
    corrupted: Corrupted | None
    weights: str


def do(task: Transfer, grid: Grid, *, data: Path, work: Path, workers: int) -> Outcome:
    """Lay out the files, train what has no line yet, and measure what is not measured.

    Raises:
        SystemExit: If a run failed, or Ctrl-C came; the same call goes on.
    """
    folder, out = work.resolve() / "data", work.resolve() / "runs"
    lay_out(task, data, folder)
    corrupted = corrupted_images(task, data, folder) if task.corrupted else None
    before = Path.cwd()
    os.chdir(folder)  # where the grid finds its files
    try:
        with LiveTable(grid, quiet=False) as shown:
            rows = drive(grid, out, workers=workers, again=False, viewer=shown)
    except KeyboardInterrupt:
        raise SystemExit("stopped; what was running is saved. Go on with the same command.") from None
    finally:
        os.chdir(before)
    if failed := [row["error"] for row in rows.values() if row["status"] == "failed" and row["kind"] == "run"]:
        raise SystemExit(f"{task.title}: {len(failed)} runs failed. {failed[0]}")
    if corrupted is not None:
        measure_all([row for row in rows.values() if row["kind"] == "run"], corrupted, folder=folder, out=out)
    return Outcome(folder, out, rows, read_results(out / MEASURED), corrupted, weights_of(task, data))
