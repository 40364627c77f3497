"""A process killed at any moment of saving leaves a checkpoint that loads; plain saving in place does not."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from convpeft.errors import RunError
from convpeft.training.checkpoints import read_checkpoint
from convpeft.writing import remove_leftovers
from forking import Server
from measuring import counted, times

NUMBERS = 1 << 20  # of a checkpoint: 4 MiB, so that most of the time is spent in writing
WITH_CARE = """
from pathlib import Path
import torch
from convpeft.training.checkpoints import Checkpoint, write_checkpoint
number = {number}
while True:
    number += 1
    tensors = {{"adapter/x": torch.full(({numbers},), float(number))}}
    write_checkpoint(Checkpoint(tensors, {{"number": number}}), Path({directory!r}))
    print(number, flush=True)
"""
# The same two files, opened and written as anyone would; everything else is done before.
IN_PLACE = """
from pathlib import Path
import torch
from convpeft.training.checkpoints import Checkpoint, write_checkpoint
contents, last = [], Path({directory!r})
for number in (0, 1):
    tensors = {{"adapter/x": torch.full(({numbers},), float(number))}}
    write_checkpoint(Checkpoint(tensors, {{"number": number}}), last)
    contents.append({{file.name: file.read_bytes() for file in last.iterdir()}})
print(1, flush=True)
while True:
    for content in contents:
        for name in ("state.safetensors", "state.json"):
            (last / name).write_bytes(content[name])
"""


def save_and_kill(server: Server, code: str, directory: Path, number: int, seconds: float) -> int:
    """Save checkpoints numbered on from `number` until the process is killed; the last that it finished."""
    process = server.start(code.format(directory=str(directory), number=number, numbers=NUMBERS))
    assert process.wait(seconds) is None, process.said()
    while code is IN_PLACE and not process.said():
        assert process.wait(0.02) is None, process.said()
    process.kill()
    return max([number, *(int(line) for line in process.said().splitlines())])


@pytest.mark.promise("F02")
@pytest.mark.timeout(1800)
def test_newest_checkpoint_loads_wherever_its_writer_is_killed(server, tmp_path):
    draw, finished = random.Random(0), 0
    for _ in range(times(full=200, reduced=6)):
        finished = save_and_kill(server, WITH_CARE, tmp_path / "last", finished, draw.uniform(0.02, 0.25))
        counted("kills while saving")
        found = read_checkpoint(tmp_path / "last")
        if found is None:
            assert finished == 0  # it did not come so far
            continue
        number = found.facts["number"]
        assert number in (finished, finished + 1)  # the last that was finished, or the one that was just put in place
        assert found.damaged is None
        assert torch.equal(found.tensors["adapter/x"], torch.full((NUMBERS,), float(number)))
        counted("checkpoints that loaded")
        finished = number
        remove_leftovers(tmp_path)
        assert {each.name for each in tmp_path.iterdir()} <= {"last", "last.previous"}
    assert finished > 0


@pytest.mark.promise("F02")
def test_plain_saving_in_place_leaves_nothing_that_loads(server, tmp_path):
    """The test above can fail: the same kills destroy what is written without care."""
    draw, survived, kills = random.Random(0), 0, times(full=20, reduced=3)
    for number in range(kills):
        directory = tmp_path / str(number) / "last"
        save_and_kill(server, IN_PLACE, directory, 0, draw.uniform(0.1, 0.4))
        shutil.rmtree(directory.with_name("last.previous"))  # who saves in place keeps none
        try:
            survived += read_checkpoint(directory) is not None
        except RunError:
            counted("checkpoints saved in place that were lost")
    counted("checkpoints saved in place that loaded", survived)
    assert survived <= kills // 3
