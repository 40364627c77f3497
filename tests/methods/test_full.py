"""Full fine-tuning: every parameter, as a copy."""

import torch
from torch import Tensor, nn

import convpeft


class Network(nn.Module):
    """With a loose parameter, a PReLU and an embedding-like table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.activation = nn.PReLU(8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier((self.activation(self.norm(self.conv(x))) * self.scale).mean((2, 3)))


def test_every_parameter_is_trained_as_a_copy() -> None:
    model = Network()
    size = sum(parameter.numel() for parameter in model.parameters())
    convpeft.attach(model, "full")
    assert convpeft.count(model).trainable == size
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in convpeft.trainable_parameters(model))


def test_sequence_layers_are_trained_too() -> None:
    model = nn.Sequential(nn.LSTM(4, 5, batch_first=True))
    convpeft.attach(model, "full")
    before = model[0](torch.ones(1, 3, 4))[0]
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(0.3)
    assert not torch.allclose(model[0](torch.ones(1, 3, 4))[0], before)


def test_frozen_norms_are_left_out() -> None:
    model = convpeft.attach(Network(), "full", norm="frozen")
    assert "norm" not in convpeft.count(model).layers
