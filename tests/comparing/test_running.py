"""A comparison is done exactly once, whoever does it and however often it is killed; the tuner sees validation only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convpeft.comparing.grid import read_grid
from convpeft.comparing.report import write_comparison
from convpeft.comparing.store import read_results

GRID = """
baseline = "probe"
[base]
model.source = "small-cnn"
data = {{ source = "{data}" }}
train = {{ epochs = 1, prefix_cache = "off", batch_size = 16 }}
[[arm]]
name = "probe"
method.name = "probe"
[[arm]]
name = "lora"
method = {{ name = "lora", rank = 1 }}
{more}
[grid]
seeds = [0, 1]
"""
TIMES = ("measured",)  # differ from run to run


def write_grid(folder: Path, *, more: str = "", seed: int = 0) -> Path:
    """Twenty-four images in three classes; the seed changes the test split alone."""
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, number in (("train", 1), ("val", 2), ("test", 3 + seed)):
        rng = np.random.default_rng(number)
        arrays[f"{name}_images"] = rng.integers(0, 256, (24, 28, 28), dtype=np.uint8)
        arrays[f"{name}_labels"] = rng.permutation(np.arange(24) % 3)
    np.savez(folder / "data.npz", **arrays)
    grid = folder / "grid.toml"
    grid.write_text(GRID.format(data=f"npz:{folder / 'data.npz'}", more=more))
    return grid


def start(grid: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "convpeft", "compare", str(grid), "--out", str(out), *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def rows(out: Path) -> list[dict[str, Any]]:
    """The lines as they are in the file, sorted, without times."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return sorted(({k: v for k, v in line.items() if k not in TIMES} for line in lines), key=lambda row: row["key"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A grid and the directory of its comparison, done without a break."""
    folder = tmp_path_factory.mktemp("comparison")
    grid = write_grid(folder)
    process = start(grid, folder / "out")
    told, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert len([line for line in told.splitlines() if " run " in line]) == 4  # one line a run in a pipe
    return grid, folder / "out"


@pytest.mark.slow
def test_killed_comparison_ends_as_one_that_was_not(whole, tmp_path):
    grid, out = whole
    process = start(grid, tmp_path / "out")
    path = tmp_path / "out" / "results.jsonl"
    limit = time.monotonic() + 200
    while not read_results(path) and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < len(read_results(path)) < 4
    again = start(grid, tmp_path / "out")
    assert again.wait(240) == 0
    again.communicate()
    assert rows(tmp_path / "out") == rows(out)


@pytest.mark.slow
def test_two_processes_do_each_run_once(whole, tmp_path):
    grid, out = whole
    both = [start(grid, tmp_path / "out") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    assert rows(tmp_path / "out") == rows(out)  # as many lines, so none twice


def test_what_is_done_is_not_done_again(whole):
    grid, out = whole
    before = (out / "results.jsonl").read_bytes()
    process = start(grid, out, "--json")
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert [arm["arm"] for arm in json.loads(told)["arms"]] == ["probe", "lora"]
    assert (out / "results.jsonl").read_bytes() == before


def test_pages_are_equal_bytes_for_equal_rows(whole, tmp_path):
    grid, out = whole
    checked = read_grid(grid)
    found = read_results(out / "results.jsonl")
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_comparison(checked, found, folder)
    for name in ("comparison.html", "comparison.md", "plots/costs.png", "plots/learning.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_runs_from_cached_features_leave_no_semaphore_behind(tmp_path):
    grid = write_grid(tmp_path)
    cached = grid.read_text().replace('epochs = 1, prefix_cache = "off"', 'epochs = 2, prefix_cache = "on"')
    grid.write_text(cached.partition('[[arm]]\nname = "lora"')[0] + "[grid]\nseeds = [0]\n")
    process = start(grid, tmp_path / "out")
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")


def test_what_is_set_on_the_command_line_reaches_the_grid_and_is_told(whole, tmp_path):
    grid, out = whole
    process = start(grid, tmp_path / "none", "--dry-run", "--json", "--set", "grid.seeds=[0, 1, 2]")
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(told)["runs"] == 6
    checked = read_grid(grid, assign=["grid.seeds=[0, 1]"])
    write_comparison(checked, read_results(out / "results.jsonl"), tmp_path / "set")
    command = "convpeft compare grid.toml --set 'grid.seeds=[0, 1]' --out DIR"
    assert command in (tmp_path / "set" / "comparison.md").read_text()


def test_diverged_run_is_a_row_and_the_rest_goes_on(tmp_path):
    diverging = '[[arm]]\nname = "wild"\nmethod.name = "full"\ntrain = { lr = 1e30, clip = 0.0, optimizer = "sgd" }'
    process = start(write_grid(tmp_path, more=diverging), tmp_path / "out")
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1
    assert errors.startswith("convpeft: 2 of 6 runs failed: ")
    assert errors.count("\n") == 1
    found = {(row["arm"], row["status"]) for row in rows(tmp_path / "out")}
    assert found == {("probe", "done"), ("lora", "done"), ("wild", "failed")}
    assert "wild, seed 0: " in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.slow
def test_tuner_does_not_see_the_test_split(tmp_path):
    pytest.importorskip("optuna")
    tune = "[tune]\ntrials = 2\ntrain.lr = { low = 1e-3, high = 1e-1 }"
    told = []
    for seed in (0, 1):
        folder = tmp_path / "data"
        process = start(write_grid(folder, more=tune, seed=seed), tmp_path / f"out{seed}")
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
        told.append(rows(tmp_path / f"out{seed}"))
    trials = [[row for row in each if row["kind"] == "trial"] for each in told]
    assert trials[0] == trials[1] and len(trials[0]) == 4
    tests = [[row["test"] for row in each if row["kind"] == "run"] for each in told]
    assert tests[0] != tests[1]  # the splits do differ
    assert not any("test" in row for row in trials[0])


def test_wrong_key_is_one_line_before_any_work(tmp_path):
    grid = write_grid(tmp_path, more="[[arm]]\nname = 'x'\ntrain.epoch = 1")
    process = start(grid, tmp_path / "out")
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, told) == (2, "")
    assert "train.epoch is not a key. Did you mean 'epochs'?" in errors
    assert not (tmp_path / "out").exists()
