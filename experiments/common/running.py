"""Run the grids of a budget one after the other by `convpeft compare`, and keep what each has come to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.collecting import Store, Task
from convpeft.comparing import read_grid


def compare(tasks: Sequence[Task], store: Store, *, grids: Path, data: Path, work: Path, workers: int) -> None:
    """Run what is not there yet; the first comparison that fails ends it with its status.

    Args:
        tasks: In this order.
        store: Takes the results of each task as soon as it is done.
        grids: Folder of the grid files.
        data: Folder of the files that the grids name.
        work: Where the runs lie, a folder a task.
        workers: Runs at once.
    """
    for task in tasks:
        out = work.resolve() / task.name
        words = [sys.executable, "-m", "convpeft", "compare", str(grids / task.grid), "--out", str(out)]
        words += ["--workers", str(workers), *(word for each in task.assign for word in ("--set", each))]
        status = subprocess.run(words, cwd=data, check=False).returncode
        if status:
            raise SystemExit(status)
        store.take(task, read_grid(grids / task.grid, assign=task.assign), out, data)
