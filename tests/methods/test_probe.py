"""Linear probe: the head alone."""

import pytest
import torch
from torch import nn

import convpeft


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_old_head_is_trained_as_a_copy() -> None:
    model = convpeft.attach(network(), "probe")
    assert convpeft.count(model).layers == {"4": 36}
    assert torch.equal(model[4].weight, model[4]._parameters["weight"])


def test_new_head_is_fresh() -> None:
    model = convpeft.attach(network(), "probe", num_classes=6)
    assert convpeft.count(model).layers == {"4": 54}
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 6)


def test_network_without_a_head_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match="'probe' finds no layer to adapt"):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "probe")


def test_new_head_of_as_many_classes_is_fresh_too() -> None:
    model, x = network().eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    convpeft.attach(model, "probe", num_classes=4)
    assert not torch.equal(model(x), expected)
    assert not torch.equal(model[4].weight, model[4]._parameters["weight"])
