"""The stable decompositions: the plan is what the task names, and the page says what the results say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "stable_decomposition"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "stable_decomposition.md"
BUDGET = {
    "networks": ["cifar-resnet/20"],
    "drops": [0.01],
    "shares": [0.5],
    "imagenet": [],
    "candidates": 4,
    "choosing": 10,
    "training": 10,
    "testing": 16,
    "choosing_imagenet": 5,
    "epochs": 1,
    "seeds": [0],
}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENT / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def answers(hits: int) -> dict[str, Any]:
    bits = np.arange(16) < hits
    return {"accuracy": hits / 16, "right": np.packbits(bits).tobytes().hex(), "images": 16}


def line(kind: str, method: str, setting: float, thin: int) -> dict[str, Any]:
    figures = {"error": 0.25, "sensitivity": 1000.0 if method == "cpd" else 400.0, "largest": 0.75, "ranks": [3]}
    return {
        "kind": kind,
        "network": "cifar-resnet/20",
        "method": method,
        "setting": setting,
        "seed": 0,
        "parameters": [1000, 400],
        "multiplications": [9000, 3000],
        "layers": [figures],
        "before": answers(15),
        "thin": answers(thin),
        "restored": {"full": answers(14)},
    }


def content() -> dict[str, Any]:
    lines = [
        line("equal ranks", "cpd", 0.5, 8),
        line("equal ranks", "cpd-epc", 0.5, 12),
        line("search", "tucker", 0.01, 13),
    ]
    return {"name": "tiny", "budget": BUDGET, "versions": {"torch": "0"}, "digests": {"a": "b"}, "lines": lines}


def test_page_shows_ratios_accuracies_differences_and_what_is_missing(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(content()), encoding="utf-8")
    result = run("page", "--docs", tmp_path / "docs", "--results", tmp_path)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "docs" / PAGE.name).read_text(encoding="utf-8")
    assert "| 40.0% (2.50x) | 33.3% (3.00x) | 1 |" in page
    assert "| 0.250 | 1e+03 (1e+03) | 0.750 (0.750) | 50.0 [" in page
    assert "corrected less plain CPD, points: thin +25.0 [" in page
    assert "3 of 6 cases are not measured yet" in page
    assert "not testable here" in page
    assert (tmp_path / "docs" / "stable_decomposition" / "cifar-resnet-20.png").is_file()


def test_results_of_another_budget_are_refused(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(content()), encoding="utf-8")
    result = run("run", "--data", tmp_path, "--results", tmp_path)
    assert result.returncode == 1
    assert "was made with another budget" in result.stderr
