"""Many adapters on one backbone: the page says what the results say, and the command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
WAYS = {"mixed", "one call an adapter", "merged on demand", "a model each"}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "bank" / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_committed_page_is_what_the_committed_results_give(tmp_path: Path):
    (tmp_path / "bank.json").write_bytes((RESULTS / "bank.json").read_bytes())
    result = run("page", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "bank.md").read_bytes() == (RESULTS / "bank.md").read_bytes()


def test_committed_results_have_every_way_and_number_of_adapters():
    content = json.loads((RESULTS / "bank.json").read_text(encoding="utf-8"))
    assert not content["trial"]
    if not content["rows"]:
        assert "Not measured yet" in (RESULTS / "bank.md").read_text(encoding="utf-8")
        return
    found = [(row["net"], row["adapters"]) for row in content["rows"]]
    assert found == [(net, count) for net in ("resnet18", "resnet20") for count in (1, 8, 64)]
    for row in content["rows"]:
        assert set(row["ways"]) == WAYS
        assert all(len(way["seconds"]) == content["rounds"] for way in row["ways"].values())


@pytest.mark.slow
def test_the_command_runs_in_a_small_form(tmp_path: Path):
    result = run("--fast", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "bank.json").read_text(encoding="utf-8"))["rows"]
    assert [row["adapters"] for row in rows] == [1, 4]
    shared, copies = (rows[1]["ways"][way]["bytes"] for way in ("mixed", "a model each"))
    assert shared < copies / 2
    assert "The numbers mean nothing" in (tmp_path / "bank.md").read_text(encoding="utf-8")
