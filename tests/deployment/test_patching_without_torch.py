"""A device needs numpy, onnx and convpeft: everything else is out of reach here, and the command works."""

from pathlib import Path

import numpy as np
import pytest
import torch

import convpeft
from convpeft.adapter_description import MAP
from convpeft.deployment.patch_map import write_patch_map
from deployment.device import device
from deployment.patched_networks import network, run_onnx, save_adapter, write_base

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a base, an adapter and its map."""
    folder = tmp_path_factory.mktemp("device")
    write_base(network(), folder / "base.onnx", X)
    write_patch_map(save_adapter(network(), folder / "run" / "adapter", "lora", norm="adapt", num_classes=3), network())
    return folder


def test_patch_needs_numpy_and_onnx_only(made: Path, tmp_path: Path) -> None:
    done = device("patch", made / "base.onnx", made / "run", "--out", tmp_path / "patched.onnx")
    assert done.returncode == 0, done.stderr
    assert "new tensors" in done.stdout
    assert done.stderr == ""
    model = convpeft.merge(convpeft.load(network(), made / "run"))
    with torch.no_grad():
        assert np.abs(run_onnx(tmp_path / "patched.onnx", X) - model(X).numpy()).max() <= 1e-4


def test_map_that_is_missing_is_asked_for(made: Path, tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "bitfit")
    done = device("patch", made / "base.onnx", adapter, "--out", tmp_path / "patched.onnx")
    assert done.returncode == 1
    assert f"{MAP}: there is no map, and no torch to make it. Run convpeft export RUN --to patch" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "patched.onnx").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("train",), 2, "convpeft: argument patch: invalid choice: 'train'"),
        (("patch", "a.onnx", "b"), 2, "the following arguments are required: --out"),
        (("patch", "a.onnx", "b", "--out", "c.bin"), 2, "expected a name that ends in .onnx"),
        (("patch", "a.onnx", "b", "--out", "c.onnx"), 1, "b: holds no adapter"),
    ],
)
def test_mistake_on_a_device_is_one_line(words: tuple[str, ...], status: int, message: str) -> None:
    done = device(*words)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("convpeft: ")
    assert "Traceback" not in done.stderr


def test_help_of_a_device_says_what_is_missing() -> None:
    done = device("--help")
    assert done.returncode == 0
    assert "Only `convpeft patch` works here" in done.stdout
