"""Run an experiment as a user does, and what must hold of the results that are committed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_experiment(
    folder: Path, *words: str | Path, cwd: Path | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run its command with one thread; the caller looks at the status."""
    return subprocess.run(
        [sys.executable, str(folder / "run.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def assert_names_no_folder(text: str) -> None:
    """No place on the machine that made the results is in them."""
    assert '"/' not in text and ":/" not in text


def assert_tuned_alike(content: dict[str, Any]) -> None:
    """The medium budget, with as many trials for every arm in every setting."""
    assert content["budget"] == "medium"
    for each in content["tasks"].values():
        counts = {
            len([t for t in each["tried"] if (t["arm"], t["setting"]) == (arm, setting)])
            for arm in each["arms"]
            for setting in {run["setting"] for run in each["runs"]}
        }
        assert counts == {each["trials"]}
