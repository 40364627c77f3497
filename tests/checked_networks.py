"""Networks for the tests of `convpeft.check`: one that is right, and one that reads a weight past its adapter."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from small_network import X


def failures(model: nn.Module, **arguments: object) -> set[str]:
    """Names of the claims that fail on a model."""
    arguments = {"example": X} | arguments
    return {finding.name for finding in convpeft.check(model, **arguments).findings if finding.status == "fail"}


class Net(nn.Module):
    """Two convolutions, a norm and a classifier, for a subclass to get wrong."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.middle(F.relu(self.norm(self.first(x)))))

    def middle(self, x: Tensor) -> Tensor:
        return self.second(x)

    def tail(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x).mean((2, 3)))


class ReadsPast(Net):
    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.second._parameters["weight"], self.second._parameters["bias"])
