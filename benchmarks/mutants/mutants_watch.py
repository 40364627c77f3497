"""A pytest plugin: refuse to test any convpeft but the copy, and note which tests passed, failed and were skipped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import hypothesis
import pytest

SOURCE, REPORT = "MUTANTS_SOURCE", "MUTANTS_REPORT"

# The examples of the profile `ci`, without the time that making a failing one smaller takes.
PROFILE = "mutants"
hypothesis.settings.register_profile(
    PROFILE,
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)

_outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": [], "broken": []}


def pytest_configure() -> None:
    import convpeft

    # A command in the background may have been told to ignore Ctrl-C; the tests of it need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    used, wanted = Path(convpeft.__file__).resolve(), Path(os.environ[SOURCE]).resolve()
    if wanted not in used.parents:
        raise pytest.UsageError(f"the tests would run on {used} and not on the copy below {wanted}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _outcomes["broken"].append(report.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        _outcomes[report.outcome].append(report.nodeid)


def pytest_sessionfinish() -> None:
    Path(os.environ[REPORT]).write_text(json.dumps(_outcomes), encoding="utf-8")
