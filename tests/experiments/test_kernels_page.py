"""Whether accuracy pays for speed: the page says what the results say, and the command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "kernels"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "kernels.md"
MODES = ("weight", "side", "hybrid", "default", "bf16", "lora-fa weight", "lean", "stage weight", "prefix")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENT / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def read(folder: Path = EXPERIMENT) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def right(line: dict[str, Any], count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(line["right"]), dtype=np.uint8))[:count]


def test_committed_page_is_what_the_committed_results_give(tmp_path: Path):
    result = run("page", "--docs", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / PAGE.name).read_bytes() == PAGE.read_bytes()


def test_committed_results_have_every_way_with_three_seeds():
    content = read()
    assert [(line["mode"], line["seed"]) for line in content["runs"]] == [(m, s) for m in MODES for s in (0, 1, 2)]


def test_committed_runs_were_computed_as_they_say():
    kernels = {(line["mode"], line["seed"]): line for line in read()["runs"]}
    for seed in (0, 1, 2):
        for definition in ("weight", "lora-fa weight", "stage weight"):
            found = kernels[definition, seed]
            assert (set(found["kernels"]), found["folded"], found["layout"]) == ({"weight"}, 0, "contiguous")
        for mode, kernel in (("side", "side"), ("hybrid", "hybrid"), ("default", "hybrid"), ("lean", "lean")):
            assert kernel in kernels[mode, seed]["kernels"]
            assert kernels[mode, seed]["folded"] > 0


def test_committed_accuracies_are_those_of_the_images_that_are_right():
    content = read()
    count = content["budget"]["test"]
    assert all(line["accuracy"] == pytest.approx(right(line, count).mean()) for line in content["runs"])


def test_committed_page_shows_the_difference_of_two_accuracies():
    content = read()
    found = {(line["mode"], line["seed"]): line["accuracy"] for line in content["runs"]}
    wanted = 100 * (found["bf16", 1] - found["weight", 1])
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| default, in bf16"))
    assert row.split("|")[3].startswith(f" {wanted:+.2f} [")


def test_results_of_another_budget_are_refused(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(read() | {"budget": {}}), encoding="utf-8")
    result = run("run", "--data", tmp_path, "--results", tmp_path)
    assert result.returncode == 1
    assert "was made with another budget" in result.stderr


def test_runs_that_are_there_are_not_made_again(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(read()), encoding="utf-8")
    result = run("run", "--data", tmp_path, "--results", tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
