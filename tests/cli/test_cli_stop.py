"""A training process that is stopped, killed or started twice leaves a run that goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convpeft.training import make_recipe
from tiny import recipe

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def write_recipe(images, tmp_path):
    """Write a recipe of a run into tmp_path/cut."""

    def write(**keys) -> Path:
        file = tmp_path / "recipe.toml"
        file.write_text(make_recipe(recipe(images, tmp_path / "cut", **keys)).to_toml())
        return file

    return write


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "convpeft", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 60
    while not path.exists() and time.monotonic() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def adapter(out: Path) -> list[bytes]:
    return [(out / "adapter" / name).read_bytes() for name in FILES]


@pytest.mark.promise("F03")
@pytest.mark.parametrize("whole_group", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_terminated_process_saves_leaves_no_workers_and_is_resumed(call, write_recipe, tmp_path, whole_group):
    """As a scheduler stops it: the process alone, or with its workers."""
    config, cut = write_recipe(train__epochs=8, train__workers=2), tmp_path / "cut"
    process = start("train", "--config", config)
    wait_for(cut / "checkpoints" / "last", process)
    began = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 143, err
    assert re.match(r"convpeft: stopped by SIGTERM (in|after) epoch \d+", err)
    assert err.endswith(f". Go on with `convpeft train --resume {cut}`.\n")
    assert err.count("\n") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not (cut / ".lock").exists()
    call("train", "--resume", cut).succeeded()
    call("train", "--config", config, "--out", tmp_path / "whole").succeeded()
    assert adapter(cut) == adapter(tmp_path / "whole")


@pytest.mark.promise("F01", "F07")
def test_killed_process_is_resumed_and_its_lock_and_leftovers_are_taken_away(call, write_recipe, tmp_path):
    config, cut = write_recipe(train__epochs=20), tmp_path / "cut"
    process = start("train", "--config", config)
    wait_for(cut / "checkpoints" / "last", process)
    process.kill()
    process.communicate()
    assert (cut / ".lock").exists()
    (cut / ".0123456789abcdef.convpeft-new").write_text("half")
    (cut / "checkpoints" / ".0123456789abcdef.convpeft-new").mkdir()
    text = call("train", "--resume", cut).succeeded()
    assert f"note: {cut}: took over the lock of process {process.pid}, which has ended." in text
    assert list(cut.rglob(".*")) == []
    call("train", "--config", config, "--out", tmp_path / "whole").succeeded()
    assert adapter(cut) == adapter(tmp_path / "whole")


@pytest.mark.promise("F07")
@pytest.mark.parametrize("resume", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_of_two_processes_in_one_directory_exactly_one_trains(call, write_recipe, tmp_path, resume):
    config, cut = write_recipe(train__epochs=4), tmp_path / "cut"
    words = ("train", "--config", config)
    if resume:
        call(*words).succeeded()
        (cut / "metrics.json").unlink()
        words = ("train", "--resume", cut)
    processes = [start(*words) for _ in range(2)]
    outcomes = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    errors = [err for err, status in outcomes if status == 1]
    assert sorted(status for _, status in outcomes) == [0, 1], outcomes
    assert re.fullmatch(rf"convpeft: {cut}: (process \d+ trains into it|exists already)\. .*\n", errors[0])
    assert json.loads((cut / "metrics.json").read_text())["test"]["n"] == 6


@pytest.mark.promise("F07")
def test_run_in_use_is_refused_at_once(call, write_recipe, tmp_path):
    config, cut = write_recipe(train__epochs=500), tmp_path / "cut"
    process = start("train", "--config", config)
    wait_for(cut / "checkpoints" / "last", process)
    line = call("train", "--resume", cut).failed(1)
    assert f"{cut}: process {process.pid} trains into it. Wait for its end, stop it with `kill {process.pid}`" in line
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
