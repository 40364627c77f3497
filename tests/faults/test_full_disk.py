"""A disk that is full, read-only or limited is one line that names the path, before anything is trained."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import convpeft
from convpeft.training import make_recipe, prepare_run
from convpeft.training.checkpoints import read_checkpoint
from convpeft.training.room import expected_sizes
from measuring import measured
from tiny import files_below, recipe, write_images

pytestmark = pytest.mark.promise("F04")
REMEDY = "Free space or choose another --out."


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "pictures")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    """What trainings did on real disks of a few megabytes, mounted for one process."""
    alone = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of one's own")
    program, root = Path(__file__).with_name("on_a_small_disk.py"), tmp_path_factory.mktemp("disks")
    environment = os.environ | {"PYTHONPATH": str(program.parent.parent)}
    done = subprocess.run(
        [*alone, sys.executable, str(program), str(root)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_disk_too_small_is_refused_before_the_first_step_and_nothing_is_left(told):
    small = told["small"]
    assert re.fullmatch(
        r"RunError: .*/small/run: the run needs \d+\.\d MB for checkpoints, adapter and report, and "
        rf"\d\.\d MB are free\. {re.escape(REMEDY)}",
        small["error"],
    )
    assert small["steps"] == 0
    assert small["left"] is None


def test_command_says_so_in_one_line(told):
    assert told["command"]["status"] == 1
    assert told["command"]["said"].startswith("convpeft: ")
    assert told["command"]["said"].count("\n") == 1
    assert "are free. " + REMEDY in told["command"]["said"]


def test_disk_that_fills_up_leaves_the_checkpoint_before(told):
    filled = told["filled"]
    assert re.match(
        r"RunError: .*/large/run/checkpoints/last: cannot write the checkpoint \(.*No space left", filled["error"]
    )
    assert filled["kept epochs"] == 2
    assert not any(".convpeft-" in name for name in filled["left"])


def test_disk_that_is_still_full_is_found_before_the_first_step(told):
    assert told["still full"]["error"].endswith(REMEDY)
    assert told["still full"]["steps"] == 0


def test_run_goes_on_where_the_disk_filled_up(told):
    assert told["freed"]["error"] is None
    assert told["same bytes"]


def test_read_only_disk_is_named_before_the_first_step(told):
    for case, name in (("read-only", "new"), ("read-only, resumed", "run")):
        assert re.fullmatch(
            rf"RunError: .*/fixed/{name}: cannot be written \(Read-only file system\)\. Choose another --out\.",
            told[case]["error"],
        )
        assert told[case]["steps"] == 0


def test_limit_of_a_file_is_found_before_the_first_step_and_nothing_is_left(told):
    limited = told["limited"]
    assert re.match(
        r"RunError: .*/whole/limited: the run needs .* and the system refuses as much \(File too large\)",
        limited["error"],
    )
    assert limited["steps"] == 0
    assert limited["left"] is None
    assert told["unlimited"]["error"] is None


def test_quota_is_found_before_the_first_step(images, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(convpeft.RunError, match=r"run: the run needs .* refuses as much \(Disk quota exceeded\)"):
        convpeft.train(recipe(images, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_system_that_cannot_set_room_aside_is_tried_with_a_block(images, tmp_path, monkeypatch):
    seen = []

    def cannot(*_: object) -> None:
        seen.append(_)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("os.posix_fallocate", cannot)
    result = convpeft.train(recipe(images, tmp_path / "run", train__epochs=1))
    assert seen
    assert (result.out / "adapter").is_dir()


@pytest.mark.parametrize(("free", "refused"), [(10**9, False), (10**6, True)])
def test_free_space_decides(images, tmp_path, monkeypatch, free, refused):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(2 * free, free, free))
    if not refused:
        convpeft.train(recipe(images, tmp_path / "run", train__epochs=1))
        return
    with pytest.raises(convpeft.RunError, match=r"run: the run needs .* MB for .* and 1\.0 MB are free"):
        convpeft.train(recipe(images, tmp_path / "run", train__epochs=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "keys",
    [{}, {"train__optimizer": "sgd", "train__accumulate": 2}, {"method__name": "full", "train__accumulate": 2}],
    ids=str,
)
def test_expected_sizes_are_upper_bounds_and_near(images, tmp_path, keys):
    """The checkpoint after an epoch, and one within a step, which holds a gradient as well."""
    values = recipe(images, tmp_path / "run", train__epochs=2, **keys)
    if values["method"]["name"] == "full":
        del values["method"]["rank"]
    checked = make_recipe(values)
    prepared = prepare_run(checked)
    adapter, checkpoint, *_ = expected_sizes(prepared.model, checked.train)

    class Stop:
        batches = 0

        def step(self, *_: object) -> None:
            import signal

            self.batches += 1
            if self.batches == 3:
                signal.raise_signal(signal.SIGTERM)

        def epoch(self, _: object) -> None:
            pass

    with pytest.raises(SystemExit):
        convpeft.train(values, watcher=Stop())
    out = tmp_path / "run"
    sizes = [sum(file.stat().st_size for file in (out / "checkpoints" / "last").iterdir())]
    convpeft.train(values, resume=True)
    sizes.append(sum(file.stat().st_size for file in (out / "checkpoints" / "last").iterdir()))
    saved = (out / "adapter" / "adapter_model.safetensors").stat().st_size
    fixed = torch.get_rng_state().numel() + (1 << 14)
    assert max(sizes) <= checkpoint + fixed
    assert saved <= adapter + fixed
    assert checkpoint <= 2 * max(sizes) + fixed
    measured("checkpoint on disk / expected", max(sizes) / (checkpoint + fixed))


def test_failed_report_is_one_error_that_names_the_run(images, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.html")

    monkeypatch.setattr("convpeft.training.results.write_report", fail)
    values = recipe(images, tmp_path / "run", train__epochs=1)
    with pytest.raises(convpeft.RunError, match=r"run: cannot write .*No space left on device.* --resume"):
        convpeft.train(values)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last") is not None
    monkeypatch.undo()
    convpeft.train(values, resume=True)
    assert "report.html" in files_below(tmp_path / "run")
