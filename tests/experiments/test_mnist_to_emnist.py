"""The experiment of document 000: its page says what its results say, and its command runs."""

import json
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "mnist_to_emnist"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "mnist_to_emnist.md"

# The six arms of the real grid with a budget of nothing.
GRID = """
base_data = "mnist"
targets = ["emnist-letters", "mnist+letters"]
seeds = [0, 1]
ranks = [1]
tuning_seed = 100
tuning_rank = 1
extensions = 0
factor = 2.0
identity_images = 50
[data]
limit = 72
val_fraction = 0.3
[train]
epochs = 1
batch_size = 32
"""
ARM = """
[[arms]]
name = "{name}"
title = "{name}"
{extra}
method = {method}
rates = [0.001]
"""
ARMS = {
    "scratch": ('{ name = "full" }', "random_start = true"),
    "head": ('{ name = "probe" }', ""),
    "lora-projection": ('{ name = "lora", include = ["projection"] }', "ranked = true"),
    "lora-conv": ('{ name = "lora", include = ["conv"] }', "ranked = true"),
    "full": ('{ name = "full" }', ""),
}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENT / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_characters(root: Path, *, each: int = 6) -> None:
    rng = np.random.default_rng(0)
    mnist, emnist = root / "MNIST" / "raw", root / "EMNIST" / "raw"
    for split, stem in (("train", "train"), ("test", "t10k")):
        digits, letters = np.repeat(np.arange(10), each), np.repeat(np.arange(1, 27), each)
        write_idx(mnist / f"{stem}-images-idx3-ubyte", rng.integers(0, 256, (len(digits), 28, 28)))
        write_idx(mnist / f"{stem}-labels-idx1-ubyte", digits)
        write_idx(emnist / f"emnist-letters-{split}-images-idx3-ubyte", rng.integers(0, 256, (len(letters), 28, 28)))
        write_idx(emnist / f"emnist-letters-{split}-labels-idx1-ubyte", letters)


def read_lines(path: Path, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_committed_page_is_what_the_committed_results_give(tmp_path: Path):
    result = run("page", "--docs", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / PAGE.name).read_bytes() == PAGE.read_bytes()
    plots = {path.name for path in (tmp_path / PAGE.stem).iterdir()}
    assert plots == {path.name for path in (PAGE.parent / PAGE.stem).iterdir()}
    assert all(f"({PAGE.stem}/{name})" in PAGE.read_text(encoding="utf-8") for name in plots)


def test_committed_results_are_those_of_the_committed_grid():
    grid = tomllib.loads((EXPERIMENT / "grid.toml").read_text(encoding="utf-8"))
    assert [line["grid"] for line in read_lines(EXPERIMENT / "results.jsonl", "grid")] == [grid]


def test_committed_results_name_no_folder_of_a_machine():
    text = (EXPERIMENT / "results.jsonl").read_text(encoding="utf-8")
    assert '"/' not in text and ":/" not in text


def test_committed_page_mean_is_that_of_the_results():
    runs = read_lines(EXPERIMENT / "results.jsonl", "run")
    found = [run["test_accuracy"] for run in runs if (run["target"], run["arm"]) == ("emnist-letters", "head")]
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| head only |"))
    assert f"{100 * np.mean(found):.2f} % ± {100 * np.std(found, ddof=1):.2f} " in row


def test_committed_confusion_agrees_with_the_accuracy():
    for line in read_lines(EXPERIMENT / "results.jsonl", "run"):
        matrix = np.array(line["confusion"])
        assert np.trace(matrix) / matrix.sum() == pytest.approx(line["test_accuracy"], abs=1e-12)


@pytest.mark.slow
def test_miniature_grid_runs_and_goes_on_where_it_stopped(tmp_path: Path):
    write_characters(tmp_path / "data")
    arms = (ARM.format(name=name, method=method, extra=extra) for name, (method, extra) in ARMS.items())
    (tmp_path / "grid.toml").write_text(GRID + "".join(arms), encoding="utf-8")
    recipe = (EXPERIMENT / "recipe.toml").read_text(encoding="utf-8").replace("epochs = 8", "epochs = 1")
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    results = tmp_path / "results.jsonl"
    words = ["all", "--data", tmp_path / "data", "--work", tmp_path / "work", "--docs", tmp_path, "--workers", "1"]
    words += ["--grid", tmp_path / "grid.toml", "--recipe", tmp_path / "recipe.toml", "--results", results]

    first = run(*words)
    assert first.returncode == 0, first.stderr
    assert len(read_lines(results, "tune")) == 10
    runs = read_lines(results, "run")
    assert len(runs) == 20
    assert {run["off_identical"] for run in runs} == {True, None}
    assert {run["arm"] for run in runs if run["off_identical"] is None} == {"scratch"}
    head = next(run for run in runs if run["arm"] == "head")
    assert head["old_head_accuracy"] == read_lines(results, "base")[0]["test_accuracy"]
    page = (tmp_path / "mnist_to_emnist.md").read_text(encoding="utf-8")
    assert "nan" not in page and "emnist-letters" in page

    text = results.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    results.write_text("".join(lines[:-1]), encoding="utf-8")
    second = run(*words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count(" run ") == 1
    again = results.read_text(encoding="utf-8").splitlines()
    same = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (lines[-1], again[-1])]
    assert same[0] == same[1]
