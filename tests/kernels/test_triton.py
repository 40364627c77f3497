"""The kernels of Triton compute what PyTorch's operations do; without a GPU, in Triton's interpreter.

The interpreter changes what Triton is in a whole process, so that there the tests run in one of their own.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from convpeft.kernels import fused as module
from convpeft.kernels.weights import effective_weight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = "TRITON_INTERPRET"
SHAPES = [(5, 3, 3, 3), (20, 17, 3, 3), (40, 200, 1, 1), (33, 8, 5, 1), (7, 6, 3), (4, 3, 2, 3, 2), (12, 9)]


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    if DEVICE == "cpu" and not os.environ.get(INTERPRETED):
        pytest.skip("runs in a process of its own, see below")
    from convpeft.kernels import triton_kernels

    return triton_kernels


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("own_last", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_is_that_of_pytorch(
    kernels: ModuleType, shape: tuple[int, ...], last: bool, own_last: bool, scaled: bool, dtype: torch.dtype
) -> None:
    weight, up = drawn(*shape, dtype=dtype), drawn(shape[0], 3, dtype=dtype, seed=1)
    down = drawn(3, weight[0].numel(), dtype=dtype, seed=2)
    scale = drawn(shape[0], dtype=dtype, seed=3) if scaled else None
    if own_last and weight.ndim == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    like = torch.empty(2, shape[1], *[4] * (len(shape) - 2), dtype=dtype, device=DEVICE)
    if last and weight.ndim == 4:
        like = like.contiguous(memory_format=torch.channels_last)
    made = kernels.weight_of(weight, up, down, scale, dtype, channels_last=last)
    factor = up if scale is None else up * scale.unsqueeze(1)
    expected = effective_weight(weight, factor, down, scale, like)
    assert torch.allclose(made, expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 1e-12)
    if weight.ndim == 4 and last:
        assert made.is_contiguous(memory_format=torch.channels_last)


def test_weight_is_rounded_once(kernels: ModuleType) -> None:
    weight, up, down = drawn(16, 8, 3, 3), drawn(16, 4, seed=1), drawn(4, 72, seed=2)
    made = kernels.weight_of(weight, up, down, None, torch.bfloat16, channels_last=True)
    exact = (weight.double() + (up.double() @ down.double()).view_as(weight)).float()
    assert torch.equal(made, exact.bfloat16()) or float((made.float() - exact).abs().max()) <= 2.0**-8 * float(
        exact.abs().max()
    )


@pytest.mark.parametrize("channels", [1, 20, 300])
@pytest.mark.parametrize("affine", [False, True])
def test_norm_is_that_of_pytorch(kernels: ModuleType, channels: int, affine: bool) -> None:
    mean, variance = drawn(channels), drawn(channels, seed=1).square()
    weight, bias = (drawn(channels, seed=2), drawn(channels, seed=3)) if affine else (None, None)
    scale, shift = kernels.affine_of(mean, variance, weight, bias, 1e-3)
    x = drawn(2, channels, 3, dtype=torch.float64, seed=4)
    arguments = [None if each is None else each.double() for each in (mean, variance, weight, bias)]
    expected = torch.nn.functional.batch_norm(x, *arguments, training=False, eps=1e-3)  # type: ignore[arg-type]
    found = x * scale.double().view(1, -1, 1) + shift.double().view(1, -1, 1)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_trial_finds_nothing_wrong_and_finds_a_fault(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.try_out(torch.device(DEVICE)) == ""
    own = kernels.weight_of
    monkeypatch.setattr(kernels, "weight_of", lambda *args, **named: own(*args, **named) * 1.01)
    assert kernels.try_out(torch.device(DEVICE)) == "a weight is wrong"
    monkeypatch.setattr(kernels, "weight_of", own)
    norm = kernels.affine_of
    monkeypatch.setattr(kernels, "affine_of", lambda *args: (norm(*args)[0], norm(*args)[1] + 1))
    assert kernels.try_out(torch.device(DEVICE)) == "a norm is wrong"


@pytest.mark.parametrize(
    ("outcome", "why"), [("a weight is wrong", "a weight is wrong"), (ValueError("no\nptxas"), "no ptxas")]
)
def test_kernels_that_fail_their_trial_are_not_used(
    kernels: ModuleType, outcome: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(device: torch.device) -> str:
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(kernels, "try_out", trial)
    module.has_triton.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"Triton's kernels cannot be used") as noted:
            assert not module.has_triton()
        assert why in str(noted[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not module.has_triton()  # said once
    finally:
        module.has_triton.cache_clear()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED in os.environ, reason="the tests above have run")
def test_interpreter_finds_the_same() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__))]
    ran = subprocess.run(
        command, env=os.environ | {INTERPRETED: "1"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert " passed" in ran.stdout
