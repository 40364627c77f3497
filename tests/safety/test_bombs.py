"""B03: a small file that would unpack into gigabytes is refused soon and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from measuring import counted, measured
from safety.bombs import BOMBS, MEBI, write_bombs

TESTS = Path(__file__).parents[1]
LONGEST_SECONDS = 1.0
LARGEST_GROWTH = 200 * MEBI


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What came of each bomb, all of them read one after the other in one fresh process."""
    folder = tmp_path_factory.mktemp("bombs")
    sizes = write_bombs(folder)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    script = Path(__file__).with_name("bombs.py")
    ended = subprocess.run(
        [sys.executable, script, folder], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    return {name: found[name] | {"size": sizes[name]} for name in BOMBS}


@pytest.mark.promise("B03")
@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_soon_and_in_little_memory(outcome: dict, name: str) -> None:
    told = outcome[name]
    assert told["error"], told
    assert not told["error"].startswith("NOT OURS"), told
    assert len(told["error"].splitlines()) == 1
    assert told["seconds"] < LONGEST_SECONDS, told
    assert told["growth"] < LARGEST_GROWTH, told
    counted("bombs")
    measured("longest seconds", told["seconds"])
    measured("largest growth in MiB", told["growth"] / MEBI)


@pytest.mark.promise("B03")
def test_the_picture_is_as_small_as_the_promise_says(outcome: dict) -> None:
    assert outcome["png of 13,000 x 13,000"]["size"] < 170 * 1024
    assert outcome["npz of 1000:1"]["size"] * 950 < 300 * MEBI
