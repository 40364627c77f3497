"""Planted faults: each can be planted and is caught by a test that exists, and the command can fail."""

import ast
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "convpeft"
COMMAND = ROOT / "benchmarks" / "mutants" / "run.py"
sys.path.insert(0, str(ROOT / "benchmarks"))

from mutants.fault import Fault  # noqa: E402
from mutants.faults import FAULTS  # noqa: E402
from mutants.results import is_of, markdown_table, read_records  # noqa: E402
from mutants.run import main  # noqa: E402

NAMED = {fault.name: fault for fault in FAULTS}
HARMLESS = dataclasses.replace(
    NAMED["confusion matrix transposed"],
    name="a remark that changes nothing",
    before="flat = np.bincount(",
    after="flat = np.bincount(  # counts of pairs\n        ",
)


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_faults_are_many_and_named_once() -> None:
    assert len(FAULTS) == len(NAMED) >= 28
    assert all(re.fullmatch(r"[CBFSL]\d\d", promise) for fault in FAULTS for promise in fault.promises)
    assert all(fault.promises and fault.tests for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_can_be_planted(fault: Fault) -> None:
    right = (SOURCE / fault.file).read_text(encoding="utf-8")
    assert right.count(fault.before) == 1
    wrong = fault.plant(right)
    assert wrong != right
    compile(wrong, fault.file, "exec")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_tests_that_should_catch_a_fault_exist(fault: Fault) -> None:
    for test in fault.tests:
        file, _, function = test.partition("::")
        assert function.partition("[")[0] in functions_of(file), test


def test_results_tell_which_test_caught_each_fault() -> None:
    records = read_records()
    assert sorted(records) == sorted(NAMED), "run `python benchmarks/mutants/run.py --resume`"
    for fault in FAULTS:
        record = records[fault.name]
        assert is_of(record, fault), f"{fault.name!r} has changed: run `python benchmarks/mutants/run.py --resume`"
        assert record["caught_by"], f"{fault.name!r} survived"
        assert fault.names(record["caught_by"]), fault.name
    assert markdown_table().count("\n") == len(FAULTS) + 2


@pytest.mark.slow
def test_command_tells_a_caught_fault_from_one_that_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    real = [NAMED["confusion matrix transposed"], NAMED["ties counted as wins"]]
    before = {file: file.read_bytes() for file in SOURCE.rglob("*.py")}
    assert main(["--jobs", "1", "--json", str(tmp_path / "found.json")], [*real, HARMLESS]) == 1
    caught = {name: record["caught_by"] for name, record in read_records(tmp_path / "found.json").items()}
    assert caught == {real[0].name: real[0].tests[0], real[1].name: real[1].tests[0], HARMLESS.name: None}
    assert "2 of 3 planted faults were caught" in capsys.readouterr().out
    assert main(["--resume", "--json", str(tmp_path / "found.json")], real) == 0  # known, so nothing is run
    assert {file: file.read_bytes() for file in SOURCE.rglob("*.py")} == before
    assert list((tmp_path / "copies").iterdir()) == []


def heed_interrupts() -> None:
    """In a new process: tests that run in the background may have been told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_command_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    (tmp_path / "copies").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(COMMAND), "--json", str(tmp_path / "found.json")],
        env=os.environ | {"TMPDIR": str(tmp_path / "copies")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        limit = time.monotonic() + 60
        while not list(tmp_path.glob("copies/*/0/watch/*.py")) and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(0.5)  # its tests have started
        process.send_signal(number)
        assert "Stopped. Go on with --resume" in process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert [each.name for each in tmp_path.rglob("*")] == ["copies"]


def test_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "no such fault"])
    assert "there is no fault 'no such fault'" in capsys.readouterr().err
