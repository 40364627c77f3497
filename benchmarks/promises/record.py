"""Pytest plugin: run only the tests of the promises asked for, and write down each outcome as soon as it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("promises")
    group.addoption("--promises", default="", metavar="IDS", help="run the tests of these promises only")
    group.addoption("--promises-done", default="", metavar="FILE", help="leave out the tests that this file lists")
    group.addoption("--promises-record", default="", metavar="FILE", help="append a JSON line a test")
    group.addoption("--promises-source", default="", metavar="DIGEST", help="the source that is measured")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = set(filter(None, config.getoption("promises").split(",")))
    listed = config.getoption("promises_done")
    done = set(Path(listed).read_text(encoding="utf-8").splitlines()) if listed else set()
    kept = [item for item in items if wanted & set(dict(item.user_properties)["promises"]) and item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


class _Recorder:
    """Of one test, setup, call and teardown are reported; its outcome is the worst of them."""

    def __init__(self, path: Path, source: str) -> None:
        self._path, self._source = path, source
        self._phases: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        phases = self._phases.setdefault(report.nodeid, [])
        phases.append(report)
        if report.when != "teardown":
            return
        outcomes = {each.outcome for each in phases}
        outcome = "failed" if "failed" in outcomes else "skipped" if "skipped" in outcomes else "passed"
        told: dict[str, Any] = {key: value for each in phases for key, value in each.user_properties}
        line = {
            "test": report.nodeid,
            "promises": told["promises"],
            "outcome": outcome,
            "seconds": round(sum(each.duration for each in phases), 2),
            "figures": told.get("figures", {}),
            "source": self._source,
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        del self._phases[report.nodeid]


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("promises_record")
    if path and not hasattr(config, "workerinput"):  # with several workers, the process that started them hears all
        config.pluginmanager.register(_Recorder(Path(path), config.getoption("promises_source")))
