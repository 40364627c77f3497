"""The page of promises is what the measurements say, and every marked test attacks a promise that exists."""

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROMISES = ROOT / "benchmarks" / "promises"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modules of the benchmark importable, for one test."""
    monkeypatch.syspath_prepend(str(PROMISES))
    for name in ("results", "page", "record"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def marked() -> dict[str, set[str]]:
    """Ids of the promises that each test file names."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "promise":
                found.setdefault(str(path.relative_to(ROOT)), set()).update(
                    arg.value for arg in node.args if isinstance(arg, ast.Constant)
                )
    return found


@pytest.mark.usefixtures("scripts")
def test_page_is_what_the_measurements_say() -> None:
    page = runpy.run_path(str(PROMISES / "page.py"))
    assert page["PAGE"].read_text(encoding="utf-8") == page["render"]()


@pytest.mark.usefixtures("scripts")
def test_every_marked_test_attacks_a_promise_that_exists() -> None:
    known = {each.id for each in runpy.run_path(str(PROMISES / "results.py"))["promises"]()}
    assert len(known) == 39
    assert {name for names in marked().values() for name in names} <= known


def test_every_measured_test_is_still_there_and_marked() -> None:
    results = json.loads((ROOT / "docs" / "results" / "promises.json").read_text(encoding="utf-8"))
    names = marked()
    for promise, forms in results.items():
        for measured in forms.values():
            for test in measured["tests"]:
                path, _, function = test.rpartition("::")
                assert promise in names[path], test
                assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), test


@pytest.mark.usefixtures("scripts")
def test_a_promise_without_tests_is_not_built_and_one_with_a_failure_does_not_hold() -> None:
    page = runpy.run_path(str(PROMISES / "page.py"))
    outcome = {"passed": 3, "failed": 0, "skipped": 1}
    assert page["_state"]({}) == "not built yet"
    assert page["_state"]({"fast": {"tests": {"a": outcome}}}) == "holds"
    assert page["_state"]({"full": {"tests": {"a": outcome, "b": outcome | {"failed": 1}}}}) == "does not hold"
    assert page["_state"]({"full": {"tests": {"a": outcome | {"passed": 0}}}}) == "does not hold"


@pytest.mark.usefixtures("scripts")
def test_figures_of_tests_are_put_together_as_they_say(tmp_path: Path) -> None:
    results = runpy.run_path(str(PROMISES / "results.py"))
    lines = [
        {
            "test": f"t::test_a[{number}]",
            "promises": ["C01"],
            "outcome": outcome,
            "source": "s",
            "figures": {"nets": ["sum", 10.0], "largest error": ["largest", error]},
        }
        for number, (outcome, error) in enumerate([("passed", 1e-7), ("failed", 3e-7), ("skipped", 2e-7)])
    ]
    record = tmp_path / "full.jsonl"
    record.write_text("\n".join(map(json.dumps, [lines[0] | {"outcome": "failed"}, *lines])) + '\n{"cut', "utf-8")
    found = results["summarise"](list(results["read_lines"](record).values()))
    assert found["tests"] == {"t::test_a": {"passed": 1, "failed": 1, "skipped": 1}}
    assert found["figures"] == {"largest error": 3e-7, "nets": 30.0}
