"""BitFit: which biases move, and which come into being."""

import torch
from torch import nn

import convpeft


def network() -> nn.Sequential:
    norm = nn.BatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def test_layers_without_a_bias_are_left_alone() -> None:
    model = convpeft.attach(network(), "bitfit")
    assert convpeft.count(model).layers == {"1": 8, "2": 4, "4": 2}
    assert model[0].bias is None


def test_create_gives_every_convolution_a_bias() -> None:
    model = convpeft.attach(network(), "bitfit", create=True)
    assert convpeft.count(model).layers == {"0": 8, "1": 8, "2": 4, "4": 2}
    assert torch.count_nonzero(model[0].bias) == 0


def test_created_bias_is_kept_by_merge_and_gone_after_detach() -> None:
    model = convpeft.attach(network(), "bitfit", create=True)
    assert "0.bias" in convpeft.merged(model).state_dict()
    convpeft.detach(model)
    assert "0.bias" not in model.state_dict()
    assert model[0].bias is None
