"""The experiment of document 003: its summary and verdicts follow from the lines, and its command runs and goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "retention"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "retention.md"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENT / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def read(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


# What target and source come to for each arm, by seed, in the made-up results.
TARGET = {"head": 0.5, "lora-8": 0.7, "lora-2": 0.6, "lora-32": 0.75, "full": 0.8, "l2-sp": 0.7, "lwf": 0.7}
SOURCE = {"head": 0.8, "lora-8": 0.6, "lora-2": 0.7, "lora-32": 0.5, "full": 0.2, "l2-sp": 0.4, "lwf": 0.79}


def made_up() -> list[dict[str, Any]]:
    """A whole transfer whose figures are known: a base of 80 %, two seeds a hundredth apart."""
    transfer = {"name": "made", "title": "Made up", "network": "small-cnn", "weights": "", "folds": False}
    transfer |= {"image_size": None, "source_fit": 100}
    budget = {
        "transfers": [transfer],
        "epochs": {"1.0": 1},
        "seeds": [0, 1],
        "arms": list(TARGET),
        "trials": 1,
        "base_images": 10,
        "base_epochs": 1,
        "sequence": {"groups": 2, "turns": 2, "images": 5, "test": 5, "epochs": 1},
    }
    place: dict[str, Any] = {"transfer": "made", "fraction": 1.0, "lr": 0.001}
    lines: list[dict[str, Any]] = [
        {"kind": "budget", "name": "tiny", "budget": budget, "versions": {"torch": "0"}},
        {
            "kind": "base",
            "transfer": "made",
            "sha256": "ab",
            "source_accuracy": 0.8,
            "source_images": 100,
            "probe_accuracy": 0.8,
            "digests": {"target test": "cd"},
        },
    ]
    for arm in ("head", "lora-8", "full", "l2-sp", "lwf"):
        lines.append({"kind": "tune", "arm": arm, "seed": 100, "val_accuracy": 0.5, "val_loss": 1.0, **place})
    for arm, learned in TARGET.items():
        for seed in (0, 1):
            line = {"kind": "run", "arm": arm, "seed": seed, "val_accuracy": learned, "trainable": 10, **place}
            line |= {"train_images": 50, "test_images": 40, "test_accuracy": learned + seed / 100, "seconds": 1.0}
            line |= {"source_accuracy": SOURCE[arm], "source_agreement": 0.5, "probe_accuracy": 0.4}
            line["off_identical"] = True
            if arm == "full":
                between = {"coefficient": 0.5, "val_accuracy": 0.704, "test_accuracy": 0.71 + seed / 100}
                between |= {"source_accuracy": 0.64, "source_agreement": 0.5, "off_identical": True}
                line["wise"] = [between]
            lines.append(line)
    for seed in (0, 1):
        matrix = [[0.9, 0.1], [0.4, 0.8 + seed / 100]]
        line = {"kind": "sequence", "scenario": "turns", "mode": "one adapter", "seed": seed, "lr": 0.1}
        lines.append(line | {"matrix": matrix, "untrained": [0.05, 0.05], "seconds": 1.0})
    return lines


def page_of(folder: Path, lines: list[dict[str, Any]]) -> str:
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = run("page", "--results", folder, "--docs", folder / "docs")
    assert result.returncode == 0, result.stderr
    return (folder / "docs" / PAGE.name).read_text(encoding="utf-8")


def test_page_has_the_figures_verdicts_and_matches_that_follow_from_the_lines(tmp_path: Path) -> None:
    page = page_of(tmp_path, made_up())
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    arms = {line[1]: line for line in cells if line[0] == "100 %" and len(line) == 10}
    assert arms["LoRA, rank 8"][7] == "75.0 [75.0, 75.0]"  # 0.6 of the base's 0.8
    assert arms["LoRA, rank 8"][4].startswith("70.5 [64.1, 76.9]")  # Student's, one degree of freedom: 12.7 * 0.5
    assert arms["LoRA, rank 8"][5] == "-10.0 [-10.0, -10.0]"
    assert arms["LoRA, rank 8"][9] == "50.0 %"
    verdicts = {line[0].partition(" (")[0]: line[1] for line in cells if line[1].startswith("**")}
    assert verdicts["LoRA leaves the original weights intact."] == "**held**"
    assert verdicts["With 5 % of the data LoRA keeps 95 % of the original knowledge."] == "**not held**"
    assert verdicts["There, full fine-tuning loses drastically"] == "**held**"
    assert verdicts["LoRA brings a significant improvement on the new task"] == "**not held**"
    matches = {line[2]: line for line in cells if line[0] == "made" and len(line) == 7 and "%" in line[1]}
    assert matches["full fine-tuning, rate 0.001 (none near)"][3] == "-10.0"
    assert matches["WiSE-FT, 0.5"][5] == "-5.0 [-5.0, -5.0]"
    assert matches["L2-SP, rate 0.001"][5] == "+25.0 [+25.0, +25.0]"
    assert "Of 3 comparisons" in page and "keeps more in 1, keeps less in 2," in page
    turns = next(line for line in cells if line[:2] == ["turns", "one adapter"])
    assert [cell.split(" ")[0] for cell in turns[2:]] == ["60.2", "-50.0", "5.0"]


def test_one_adapter_that_moved_the_base_is_told(tmp_path: Path) -> None:
    lines = made_up()
    next(line for line in lines if line["kind"] == "run")["off_identical"] = False
    page = page_of(tmp_path, lines)
    assert (
        "LoRA leaves the original weights intact. | **not held** | Adapter off, the base's logits are there bit by "
        in page
    )
    assert "in 15 of 16 networks" in page


def test_fraction_with_a_missing_run_is_left_out_and_said_so(tmp_path: Path) -> None:
    lines = made_up()
    lines[0]["budget"]["epochs"] = {"0.1": 1, "1.0": 1}
    page = page_of(tmp_path, lines)
    assert "`made` at 10 %: the runs are not made yet." in page


def test_results_of_another_budget_are_refused(tmp_path: Path) -> None:
    page_of(tmp_path, made_up())
    result = run("run", "--budget", "small", "--results", tmp_path, "--work", tmp_path)
    assert result.returncode == 1
    assert "was made with another budget" in result.stderr


def test_larger_budget_without_data_says_what_it_needs(tmp_path: Path) -> None:
    result = run("run", "--budget", "medium", "--data", "", "--results", tmp_path)
    assert result.returncode == 2
    assert "--budget medium needs --data" in result.stderr


@pytest.mark.skipif(not (EXPERIMENT / "results.jsonl").is_file(), reason="no results are committed yet")
def test_committed_page_mean_is_that_of_the_results() -> None:
    runs = read(EXPERIMENT / "results.jsonl", "run")
    head = [
        run["test_accuracy"]
        for run in runs
        if (run["transfer"], run["arm"], run["fraction"]) == ("letters", "head", 1.0)
    ]
    row = next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| 100 % | head only |")
    )
    assert f"| {100 * np.mean(head):.1f} [" in row


@pytest.mark.skipif(not (EXPERIMENT / "results.jsonl").is_file(), reason="no results are committed yet")
def test_committed_results_name_no_folder_and_tried_each_arm_alike() -> None:
    path = EXPERIMENT / "results.jsonl"
    assert '"/' not in path.read_text(encoding="utf-8")
    tried: dict[tuple[str, float, str], int] = {}
    for line in read(path, "tune"):
        key = (line["transfer"], line["fraction"], line["arm"])
        tried[key] = tried.get(key, 0) + 1
        assert line["seed"] not in read(path, "budget")[0]["budget"]["seeds"]
    assert set(tried.values()) == {read(path, "budget")[0]["budget"]["trials"]}


@pytest.mark.slow
def test_small_budget_runs_without_data_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = ("run", "--budget", "small", "--results", tmp_path, "--work", tmp_path / "work", "--workers", "1")
    first = run(*words)
    assert first.returncode == 0, first.stderr
    results = tmp_path / "results.jsonl"
    runs = read(results, "run")
    assert len(runs) == 32
    assert all(line["off_identical"] for line in runs)
    base = read(results, "base")[0]
    head = next(line for line in runs if line["arm"] == "head")
    assert (head["source_accuracy"], head["source_agreement"]) == (base["source_accuracy"], 1.0)
    assert head["probe_accuracy"] == base["probe_accuracy"]
    assert all(
        line["matrix"][-1][0] == line["matrix"][0][0] for line in read(results, "sequence") if "a task" in line["mode"]
    )
    page = run("page", "--results", tmp_path, "--docs", tmp_path / "docs")
    assert page.returncode == 0, page.stderr
    assert "nan" not in (tmp_path / "docs" / "retention.md").read_text(encoding="utf-8")

    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    results.write_text("".join(lines[:-1]), encoding="utf-8")
    second = run(*words)
    assert second.returncode == 0, second.stderr
    assert len(second.stdout.splitlines()) == 1
    again = [json.loads(line) for line in (lines[-1], results.read_text(encoding="utf-8").splitlines()[-1])]
    assert again[0] | {"seconds": 0} == again[1] | {"seconds": 0}
