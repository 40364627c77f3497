"""Small networks of every kind that an export meets, adapted and perturbed, as classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise
from convpeft.evaluation.inference import Classifier
from convpeft.models import Preprocessing

IMAGES = torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(5))
PREPROCESSING = Preprocessing((12, 12), "squash", 1.0, (0.0,) * 3, (1.0,) * 3, 3, "nearest")


class ChannelsLast(nn.Module):
    """A LayerNorm over the channels, as ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.running_mean, std=0.3)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.3)
    return norm


def layers(kind: str) -> list[nn.Module]:
    match kind:
        case "bias":
            return [nn.Conv2d(3, 8, 3), batch_norm(8), nn.ReLU()]
        case "no-bias":
            return [nn.Conv2d(3, 8, 3, bias=False), batch_norm(8), nn.ReLU()]
        case "no-norm":
            return [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU()]
        case "depthwise":
            return [nn.Conv2d(3, 6, 3, groups=3, bias=False), batch_norm(6), nn.ReLU(), nn.Conv2d(6, 8, 1)]
        case "convnext":
            return [nn.Conv2d(3, 8, 3), ChannelsLast(8), nn.GELU()]
        case "norm-first":
            return [batch_norm(3), nn.ReLU(), nn.Conv2d(3, 8, 3)]
    raise ValueError(kind)


def network(kind: str = "no-bias", classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers(kind), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)).eval()


def classifier(kind: str = "no-bias", method: str = "lora", classes: tuple[str, ...] = ("a", "b", "c")) -> Classifier:
    """An adapted network with a new head of as many classes."""
    torch.manual_seed(1)
    model = randomise(convpeft.attach(network(kind), method, num_classes=len(classes)).eval(), 2)
    return Classifier(model, PREPROCESSING, classes)
