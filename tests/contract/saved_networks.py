"""A network that a new process can build again, and adapters on it that have been trained."""

import torch
from torch import nn

import convpeft
from contract.methods_under_test import train_steps
from contract.networks import randomise

NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding="valid", bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )
"""


def network() -> nn.Module:
    scope: dict = {}
    exec(NETWORK, scope)
    return scope["network"]()


def trained(method: str, policy: str | None = None, classes: int | None = None) -> nn.Module:
    """A network whose adapter has seen two steps and a perturbation."""
    model = convpeft.attach(network(), method, norm=policy, num_classes=classes).train()
    train_steps(model, torch.randn(4, 3, 16, 16), torch.optim.SGD(convpeft.param_groups(model, lr=0.05)), 2)
    return randomise(model).eval()
