"""C15: no function of the library changes the training flag of any module."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import convpeft
from contract.methods_under_test import METHODS, is_branch

pytestmark = pytest.mark.promise("C15")


def network(mode: str) -> nn.Module:
    """In evaluation, in training, or in a mixture that a careless function would even out."""
    norm = nn.BatchNorm2d(8)
    layers = (nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, 4))
    model = nn.Sequential(*layers).train(mode != "eval")
    if mode == "mixed":
        model[1].eval()
        model[3].eval()
    return model


def flags(model: nn.Module) -> dict[str, bool]:
    return {path: module.training for path, module in model.named_modules() if "convpeft" not in path}


def do_nothing(model: nn.Module, folder: Path) -> None:
    """Attaching alone."""


def merge(model: nn.Module, folder: Path) -> None:
    convpeft.merge(model)


def merged(model: nn.Module, folder: Path) -> None:
    assert flags(convpeft.merged(model)) == flags(model)


def save(model: nn.Module, folder: Path) -> None:
    convpeft.save(model, folder / "adapter")


def detach(model: nn.Module, folder: Path) -> None:
    convpeft.detach(model)


def disabled(model: nn.Module, folder: Path) -> None:
    before = flags(model)
    with convpeft.disabled(model):
        assert flags(model) == before
        model(torch.randn(2, 3, 8, 8))


def forward(model: nn.Module, folder: Path) -> None:
    model(torch.randn(2, 3, 8, 8))


def count(model: nn.Module, folder: Path) -> None:
    convpeft.count(model)
    convpeft.param_groups(model)


@pytest.mark.contract
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("act", [do_nothing, merge, merged, save, detach, disabled, forward, count])
def test_flags_are_kept(act: Callable[[nn.Module, Path], None], method: str, mode: str, tmp_path: Path) -> None:
    merges = act in (merge, merged)
    if merges and (is_branch(method, {}) or (mode != "eval" and convpeft.method_info(method).mergeable == "eval")):
        pytest.skip("this method does not merge here")
    model = network(mode)
    before = flags(model)
    convpeft.attach(model, method)
    assert flags(model) == before
    act(model, tmp_path)
    assert flags(model) == before


@pytest.mark.contract
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_flags_are_kept_by_load(method: str, mode: str, tmp_path: Path) -> None:
    model = network(mode)
    base = copy.deepcopy(model)
    convpeft.save(convpeft.attach(model, method), tmp_path / "adapter")
    before = flags(base)
    assert flags(convpeft.load(base, tmp_path / "adapter")) == before


@pytest.mark.parametrize("policy", ["frozen", "adapt", "train"])
def test_whole_adapted_model_is_in_evaluation_when_the_base_was(policy: str) -> None:
    model = convpeft.attach(network("eval"), "lora", norm=policy)
    assert [path for path, module in model.named_modules() if module.training] == []


def test_frozen_norm_says_the_training_flag_it_was_given() -> None:
    model = convpeft.attach(network("eval"), "lora").train()
    seen: list[bool] = []
    model[1].register_forward_hook(lambda layer, *_: seen.append(layer.training))
    model(torch.randn(2, 3, 8, 8))
    assert seen == [True]
