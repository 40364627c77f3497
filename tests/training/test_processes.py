"""Several processes on one run, as `accelerate launch` or `torchrun` starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import convpeft


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "convpeft", "train", "--model", "small-cnn", "--data", "glyphs:digits", "--epochs", "1"]
    command += ["--set", "model.pretrained=false", "--set", "data.limit=100", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test accuracy") == 1  # the other process keeps quiet
    facts = json.loads((out / "metrics.json").read_text())
    assert facts["images"]["train"] == 100
    assert convpeft.count(convpeft.from_adapter(out)).trainable == facts["parameters"]["trainable"]
