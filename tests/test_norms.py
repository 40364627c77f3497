"""Norm policies: what stays, what moves, what is saved."""

from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import convpeft
from contract.networks import relative_error
from small_network import by_definition

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 2


def network(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Flatten(), nn.Linear(8 * 36, 4))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_frozen_norm_in_training_uses_running_statistics(norm: type[nn.Module]) -> None:
    model = by_definition(convpeft.attach(network(norm), "lora")).train()
    in_training = model(X)
    assert torch.equal(in_training, model.eval()(X))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("policy", ["adapt", "train"])
def test_live_norm_in_training_uses_those_of_the_batch(norm: type[nn.Module], policy: str) -> None:
    plain = network(norm).train()
    model = by_definition(convpeft.attach(network(norm), "lora", norm=policy)).train()
    assert relative_error(model(X), plain(X)) <= 1e-6
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert torch.equal(model[1].running_var, plain[1].running_var)
    assert model[1].num_batches_tracked == 1
    assert relative_error(model.eval()(X), plain.eval()(X)) <= 1e-6


def test_adapt_trains_no_affine_and_train_does() -> None:
    assert convpeft.count(convpeft.attach(network(), "lora", norm="adapt")).layers.keys() == {"0"}
    assert convpeft.count(convpeft.attach(network(), "lora", norm="train")).layers == {
        "0": convpeft.count(convpeft.attach(network(), "lora")).trainable,
        "1": 16,
    }


@pytest.mark.parametrize("policy", ["adapt", "train"])
def test_moved_statistics_are_saved_with_the_adapter(tmp_path: Path, policy: str) -> None:
    model = convpeft.attach(network(), "lora", norm=policy).train()
    for _ in range(3):
        model(X)
    convpeft.save(model.eval(), tmp_path / "adapter")
    loaded = convpeft.load(network().eval(), tmp_path / "adapter")
    assert torch.equal(loaded[1].running_var, model[1].running_var)
    assert loaded[1].num_batches_tracked == 3
    assert torch.equal(loaded(X), model(X))


def test_norm_without_statistics_keeps_using_the_batch() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    expected = plain(X)
    assert torch.equal(by_definition(convpeft.attach(plain, "lora"))(X), expected)
    assert torch.equal(plain.eval()(X), expected)


def test_frozen_norm_saves_no_statistics(tmp_path: Path) -> None:
    counted = convpeft.count(convpeft.attach(network(), "lora"))
    assert counted.stored == counted.trainable


def test_cumulative_average_is_kept() -> None:
    models = [network().train(), network().train()]
    for model in models:
        model[1].momentum = None
    by_definition(convpeft.attach(models[1], "lora", norm="adapt"))
    for _ in range(3):
        for model in models:
            model(X)
    assert torch.equal(models[0][1].running_mean, models[1][1].running_mean)


def test_switching_adapters_switches_statistics() -> None:
    model = convpeft.attach(network(), "lora", name="live", norm="adapt").train()
    model(X)
    moved = model[1].running_mean.clone()
    convpeft.set_active(model, [])
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    convpeft.set_active(model, ["live"])
    assert torch.equal(model[1].running_mean, moved)
