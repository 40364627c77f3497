"""Memory stays flat over thousands of training steps and hundreds of save, load and merge cycles."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from measuring import counted, measured, times

pytestmark = [
    pytest.mark.promise("L02"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process its memory"),
]
LIMIT = 0.02  # of the memory after warming up
WARM = 0.25  # share of the time in which allocators and caches fill


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    program = Path(__file__).with_name("train_and_save_for_long.py")
    amount = [str(times(full=2000, reduced=200)), str(times(full=200, reduced=20))]
    done = subprocess.run(
        [sys.executable, str(program), *amount], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", ["steps", "cycles"])
def test_memory_grows_by_less_than_two_percent(told, what):
    memory = told[what]
    warm, part = int(WARM * len(memory)), max(1, len(memory) // 10)
    before, after = median(memory[warm : warm + part]), median(memory[-part:])
    counted(what, len(memory))
    measured(f"growth over {what}", after / before - 1)
    assert after / before - 1 < LIMIT, (before, after)
