"""Several processes on one run, as `accelerate launch` or `torchrun` starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import convpeft
from convpeft.errors import OptionError
from convpeft.training.engine import Engine
from convpeft.training.recipe import TrainSection


@pytest.mark.slow
@pytest.mark.promise("F03")
def test_two_processes_make_one_run_and_stop_and_go_on_together(tmp_path: Path) -> None:
    """As a scheduler ends it: the signal goes to torchrun, which tells its processes."""
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "convpeft"]
    words = ["train", "--model", "small-cnn", "--data", "glyphs:digits", "--epochs", "12", "--rank", "2"]
    words += ["--set", "model.pretrained=false", "--set", "data.limit=100", "--out", str(out)]
    pipe = subprocess.PIPE
    with subprocess.Popen([*launch, *words], stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        limit = time.monotonic() + 120
        while not (out / "checkpoints" / "last").exists() and time.monotonic() < limit:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 10
        assert process.returncode != 0
    assert err.count("convpeft: stopped by SIGTERM ") == 1, err[-3000:]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not (out / ".lock").exists()
    done = subprocess.run([*launch, "train", "--resume", str(out)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test accuracy") == 1  # the other process keeps quiet
    facts = json.loads((out / "metrics.json").read_text())
    assert facts["images"]["train"] == 100
    assert convpeft.count(convpeft.from_adapter(out)).trainable == facts["parameters"]["trainable"]
    assert len((out / "metrics.csv").read_text().splitlines()) == 13


def test_objective_of_one_process_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    convpeft.attach(model, "probe", num_classes=2)
    batches = SimpleNamespace(loader=torch.utils.data.DataLoader([(torch.zeros(4), 0, 0)]))
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    with pytest.raises(
        OptionError, match=r"^train\.objective='lwf' runs in one process\. Start it without torchrun\.$"
    ):
        Engine(model, batches, TrainSection(objective="lwf"), None)


@pytest.mark.parametrize(("gpus", "noun"), [(1, "1 GPU"), (2, "2 GPUs")])
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, gpus: int, noun: str) -> None:
    from convpeft.training import processes

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(
        convpeft.RunError, match=f"3 processes were started on a machine with {noun}. Start one for each"
    ):
        processes.is_main()
