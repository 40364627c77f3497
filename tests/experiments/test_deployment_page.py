"""Deployment: the page says what the figures say, and the command that times files runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "deployment"
RESULTS = ROOT / "docs" / "results" / "deployment"
NETWORKS = ["resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0"]
FILES = ("base", "merged", "patchable", "int8")


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deployment_page", FOLDER / "page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(**ratios: float) -> dict[str, Any]:
    """What the command writes, with these medians of merged over base."""
    rows = [
        {"network": name, "ratio": [ratio - 0.1, ratio, ratio + 0.1]}
        | {f"{each}_ms": 10.0 for each in FILES}
        | {f"{each}_bytes": 1000 for each in FILES}
        for name, ratio in ratios.items()
    ]
    return {"trial": False, "rounds": 9, "machine": "m", "torch": "2", "onnxruntime": "1", "networks": rows}


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ({"one": 1.03, "two": 0.9}, "Merged takes at most 3 % longer than the base on every one."),
        ({"one": 1.031, "two": 1.0}, "Merged takes more than 3 % longer than the base on one."),
    ],
)
def test_page_says_whether_merging_costs_time(page: ModuleType, tmp_path: Path, ratios: Any, verdict: str) -> None:
    (tmp_path / "latency.json").write_text(json.dumps(figures(**ratios)))
    assert verdict in page.page(tmp_path)


def test_committed_figures_are_whole() -> None:
    table = json.loads((RESULTS / "bytes.json").read_text(encoding="utf-8"))
    assert [row["network"] for row in table["rows"]] == [
        "ResNet-18",
        "ResNet-50",
        "MobileNetV3-small",
        "EfficientNet-B0",
    ]
    assert all(row["patch"] <= row["adapter"] + 64 * 2**10 for row in table["rows"])
    if (RESULTS / "latency.json").is_file():
        facts = json.loads((RESULTS / "latency.json").read_text(encoding="utf-8"))
        assert not facts["trial"]
        assert [row["network"] for row in facts["networks"]] == NETWORKS


@pytest.mark.slow
def test_the_command_runs_in_a_small_form(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "latency.py"), "--fast", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "deployment" / "latency.json").read_text(encoding="utf-8"))
    (row,) = facts["networks"]
    assert row["network"] == "mobilenet_v3_small"
    assert all(row[f"{each}_ms"] > 0 for each in FILES)
    assert row["int8_bytes"] < row["merged_bytes"] / 2
    assert abs(row["base_bytes"] - row["merged_bytes"]) < 10_000
    assert "The numbers mean nothing" in (tmp_path / "deployment.md").read_text(encoding="utf-8")
