"""Every method on two small tasks: the page says what the results say, nothing is missing, and the command runs."""

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convpeft

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "methods"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "methods.md"
TASKS = ("oct", "pneumonia")
SEEDS = {0, 1}
ROUNDS = 7  # at least


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENT / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def read(name: str, folder: Path = EXPERIMENT) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plan() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_plan", EXPERIMENT / "plan.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_committed_page_is_what_the_committed_results_give(tmp_path: Path):
    result = run("page", "--docs", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / PAGE.name).read_bytes() == PAGE.read_bytes()
    plots = {path.name for path in (tmp_path / PAGE.stem).iterdir()}
    assert plots == {path.name for path in (PAGE.parent / PAGE.stem).iterdir()}
    assert all(f"({PAGE.stem}/{name})" in PAGE.read_text(encoding="utf-8") for name in plots)


@pytest.mark.parametrize("task", TASKS)
def test_committed_results_have_every_method_and_variant_with_both_seeds(task: str, plan: ModuleType):
    found: dict[str, set[int]] = {}
    for line in read(task)["runs"]:
        found.setdefault(line["entry"], set()).add(line["seed"])
    assert set(plan.VARIANTS) < set(found) <= {*convpeft.list_methods(), *plan.VARIANTS}
    assert all(seeds == SEEDS for seeds in found.values())


@pytest.mark.parametrize("task", TASKS)
def test_committed_runs_were_made_as_the_plan_says(task: str, plan: ModuleType):
    content, entries = read(task), plan.entries()
    assert content["budget"] == plan.TASKS[task].budget()
    assert all(line["extra"] == entries[line["entry"]] for line in content["runs"])


@pytest.mark.parametrize("task", TASKS)
def test_committed_cost_has_every_method_and_variant(task: str, plan: ModuleType):
    rows = {row["entry"]: row for row in read("cost")[task]}
    assert set(rows) == {line["entry"] for line in read(task)["runs"]}
    assert min(len(row["time_ratios"]) for row in rows.values()) >= ROUNDS
    assert rows["full"]["saved_ratio"] == 1


def test_committed_results_name_no_folder_of_a_machine():
    text = "".join((EXPERIMENT / f"{name}.json").read_text(encoding="utf-8") for name in (*TASKS, "cost"))
    assert '"/' not in text and ":/" not in text


@pytest.mark.parametrize("task", TASKS)
def test_committed_page_names_what_misses_the_margin_and_nothing_else(task: str):
    content = read(task)
    losses: dict[str, list[float]] = {}
    for line in content["runs"]:
        losses.setdefault(line["entry"], []).append(line["train_loss"])
    most = 0.95 * statistics.fmean(losses.pop("probe"))
    missing = {entry for entry, values in losses.items() if statistics.fmean(values) > most}
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("- `")]
    told = {line.split("`")[1] for line in lines if f" on {content['budget']['title']}: " in line}
    assert told == missing


def test_committed_page_gives_a_reason_for_what_misses_the_margin():
    assert "reason is not known" not in PAGE.read_text(encoding="utf-8")


def test_committed_page_mean_is_that_of_the_results():
    accuracies = [100 * line["test_accuracy"] for line in read("oct")["runs"] if line["entry"] == "probe"]
    text = PAGE.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `probe` |"))
    assert f"| {np.mean(accuracies):.1f} % [{min(accuracies):.1f}, {max(accuracies):.1f}] |" in row


def test_runs_that_are_there_are_not_made_again(tmp_path: Path):
    for name in TASKS:
        shutil.copy(EXPERIMENT / f"{name}.json", tmp_path)
    result = run("run", "--data", tmp_path / "none", "--results", tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert all(read(name, tmp_path) == read(name) for name in TASKS)


def test_results_of_another_budget_are_refused(tmp_path: Path, plan: ModuleType):
    content = {"budget": plan.TASKS["oct"].budget() | {"epochs": 1}, "versions": {}, "runs": []}
    (tmp_path / "oct.json").write_text(json.dumps(content), encoding="utf-8")
    result = run("run", "--data", tmp_path, "--results", tmp_path, "--only", "oct")
    assert result.returncode == 1
    assert "was made with another budget" in result.stderr


def write_miniature(root: Path, task: Any) -> None:
    """The task's files with a few random images, and its network with random weights."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_images": rng.integers(0, 256, (16, 28, 28), dtype=np.uint8) for split in ("train", "val", "test")
    }
    labels = {name.replace("images", "labels"): np.arange(16, dtype=np.uint8)[:, None] % 2 for name in arrays}
    np.savez(root / task.data, **arrays, **labels)
    torch.manual_seed(0)
    network = convpeft.load_model(task.network, pretrained=False)
    (root / task.weights).parent.mkdir()
    save_file(network.state_dict(), root / task.weights)


@pytest.mark.slow
def test_miniature_runs_and_goes_on_where_it_stopped(tmp_path: Path, plan: ModuleType):
    write_miniature(tmp_path, plan.TASKS["pneumonia"])
    names = ("probe", "lora", "lora, plus_ratio 16, lr / 4")
    words = ["--data", tmp_path, "--results", tmp_path, "--only", "pneumonia", "--methods", *names]
    first = run("run", *words)
    assert first.returncode == 0, first.stderr
    content = read("pneumonia", tmp_path)
    assert {(line["entry"], line["seed"]) for line in content["runs"]} == {(n, s) for n in names for s in SEEDS}

    kept = content | {"runs": [line for line in content["runs"] if (line["entry"], line["seed"]) != ("lora", 1)]}
    (tmp_path / "pneumonia.json").write_text(json.dumps(kept), encoding="utf-8")
    second = run("run", *words)
    assert second.returncode == 0, second.stderr
    assert len(second.stdout.splitlines()) == 1
    again = read("pneumonia", tmp_path)
    same = [[line | {"seconds": 0} for line in each["runs"]] for each in (content, again)]
    assert same[0] == same[1]

    third = run("cost", *words, "--rounds", "1")
    assert third.returncode == 0, third.stderr
    saved = {row["entry"]: row["saved_ratio"] for row in read("cost", tmp_path)["pneumonia"]}
    assert 0 < saved["probe"] < saved["lora"]
