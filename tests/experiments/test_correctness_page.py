"""The rivals under the same attack: the page says what the results say, convpeft fails nowhere silently, others do."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import convpeft

REPOSITORY = Path(__file__).parents[2]
RUN = REPOSITORY / "benchmarks" / "correctness" / "run.py"
RESULTS = REPOSITORY / "docs" / "results"
LIBRARIES = {"convpeft", "peft", "lycoris", "loralib", "keras"}
NETS = 6
COMPARED = (("nets", "merge"), ("layers", "merge"), ("layers", "formula"))
WRONG = "wrong"
SHARED = {"lora", "dora", "loha", "lokr", "full"}  # with a rival; the others are measured on a third


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def read(folder: Path = RESULTS) -> dict[str, Any]:
    return json.loads((folder / "correctness.json").read_text(encoding="utf-8"))


def silently_wrong(row: dict[str, Any]) -> int:
    return sum(row[kind][measure].get(WRONG, 0) for kind, measure in COMPARED)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return read()["rows"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small run of the harness itself, in folders of its own."""
    folder = tmp_path_factory.mktemp("correctness")
    words = ("--nets", str(NETS), "--only", "convpeft,peft", "--methods", "lora", "--jobs", "2")
    result = run(*words, "--work", folder / "work", "--results", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_committed_page_is_what_the_committed_results_give(tmp_path: Path):
    (tmp_path / "correctness.json").write_bytes((RESULTS / "correctness.json").read_bytes())
    result = run("page", "--results", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "correctness.md").read_bytes() == (RESULTS / "correctness.md").read_bytes()


def test_committed_results_have_every_library_and_every_method(rows: list[dict[str, Any]]):
    assert {row["library"] for row in rows} == LIBRARIES
    assert {row["method"] for row in rows if row["library"] == "convpeft"} == set(convpeft.list_methods())


def test_committed_results_have_no_silent_failure_of_convpeft(rows: list[dict[str, Any]]):
    own = [row for row in rows if row["library"] == "convpeft"]
    assert {row["method"]: silently_wrong(row) for row in own if silently_wrong(row)} == {}
    assert sum(row["layers"]["gradient"].get(WRONG, 0) for row in own) == 0


def test_committed_results_have_no_base_that_convpeft_touched(rows: list[dict[str, Any]]):
    counted: Counter[str] = Counter()
    for row in rows:
        if row["library"] == "convpeft":
            for measure, counts in row["nets"].items():
                counted[measure] += counts.get(WRONG, 0) + counts.get("crashed", 0)
    assert {measure: number for measure, number in counted.items() if number} == {}


def test_committed_results_count_every_network_and_layer(rows: list[dict[str, Any]]):
    content = read()
    for row in rows:
        alone = row["library"] == "convpeft" and row["method"] not in SHARED
        number = content["nets"] // 3 if alone else content["nets"]
        assert sum(row["nets"]["merge"].values()) == (0 if row["library"] == "keras" else number)
        assert sum(row["layers"]["formula"].values()) == number


def test_committed_page_has_a_line_of_torch_for_every_row_with_a_wrong_layer(rows: list[dict[str, Any]]):
    page = (RESULTS / "correctness.md").read_text(encoding="utf-8")
    failing = [row for row in rows if row["layers"]["formula"].get(WRONG) or row["layers"]["merge"].get(WRONG)]
    assert {row["library"] for row in failing} == {"peft", "lycoris"}
    for row in failing:
        assert row["worst"]["layer"] in page
        assert row["worst"]["layer"].startswith("torch.nn.Conv")


def test_committed_results_name_no_folder_of_a_machine():
    text = (RESULTS / "correctness.json").read_text(encoding="utf-8")
    assert '"/' not in text and ":/" not in text


def test_small_run_finds_no_silent_failure_of_convpeft(small: tuple[Path, Any]):
    row = next(row for row in read(small[0])["rows"] if row["library"] == "convpeft")
    assert silently_wrong(row) == 0
    assert row["nets"]["merge"].get("right", 0) + row["nets"]["merge"].get("refused", 0) == NETS
    assert row["nets"]["merge"]["right"] >= NETS // 2


def test_small_run_is_not_made_again(small: tuple[Path, Any]):
    folder, first = small
    words = ("--nets", str(NETS), "--only", "convpeft,peft", "--methods", "lora")
    again = run(*words, "--work", folder / "work", "--results", folder / "again")
    assert again.returncode == 0, again.stderr
    assert "to measure" in first.stdout and "to measure" not in again.stdout
    assert read(folder / "again") == read(folder)


OUTCOMES = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import importlib
from contract.networks import Geometry
from measures import LayerMeasures

ones, zeros = (1, 1), (0, 0)
for name, mode in json.loads(sys.argv[3]):
    geometry = Geometry(3, 4, (3, 3), ones, ones, ones, mode, 1, True, False, zeros, (6, 6))
    record = LayerMeasures(importlib.import_module(f"with_{name}").library(), "lora", geometry, 0).run()
    print(*(record[measure]["outcome"] for measure in ("merge", "formula", "gradient")))
"""


def test_harness_tells_a_wrong_padding_from_a_right_one():
    cases = {
        ("peft", "circular"): "wrong wrong right",
        ("peft", "zeros"): "right right right",
        ("convpeft", "circular"): "right right right",
    }
    folders = [str(RUN.parent), str(REPOSITORY / "tests")]
    words = [sys.executable, "-W", "ignore", "-c", OUTCOMES, *folders, json.dumps(list(cases))]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert dict(zip(cases, result.stdout.splitlines(), strict=True)) == cases, result.stderr
