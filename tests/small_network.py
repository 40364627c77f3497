"""One small network with a norm, plain and adapted, for the tests of traps and refusals."""

import torch
from torch import nn

import convpeft
from contract.networks import randomise

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.running_mean)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True), pool, nn.Flatten(), nn.Linear(8, 4)).eval()


def adapted(method: str = "lora", **arguments: object) -> nn.Sequential:
    """The network with an adapter that says something."""
    arguments = {"include": ["conv", "linear"]} | arguments if method == "lora" else arguments
    return randomise(convpeft.attach(network(), method, **arguments), 2)


def by_definition(model: nn.Module) -> nn.Module:
    """A model that is computed in training as in evaluation, to the bit."""
    convpeft.set_kernels(model, kernel="weight", layout="contiguous", fold=False)
    return model
