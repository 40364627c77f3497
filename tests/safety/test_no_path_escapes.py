"""S03: a name in a file, or of an adapter, a class or a run, leads nowhere but to where it belongs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from measuring import counted, times

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What happened while every payload was given to every place, in a process with an audit hook."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    script, root = Path(__file__).with_name("run_payloads.py"), tmp_path_factory.mktemp("payloads")
    count = times(full=250, reduced=25)
    ended = subprocess.run(
        [sys.executable, script, root, str(count)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.promise("S03")
@pytest.mark.timeout(0)
def test_nothing_outside_is_read_or_written(outcome: dict) -> None:
    assert outcome["events"] == {}
    assert outcome["changed"] == []
    counted("payloads", outcome["payloads"])
    counted("names tried", outcome["tries"])


@pytest.mark.promise("S03", "S02")
def test_every_payload_is_taken_or_refused_in_one_line(outcome: dict) -> None:
    assert outcome["wrong"] == {}


@pytest.mark.promise("S03", "C09")
def test_any_string_is_the_name_of_an_adapter(outcome: dict) -> None:
    assert outcome["illegal"] == []
