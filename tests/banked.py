"""A network with most kinds of layers, and saved adapters that say something, for the tests of banks and sums."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise

IMAGES = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Spatial, depthwise, norm, a loose scale, a residual link."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding="same", groups=channels)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.depthwise(torch.relu(self.norm(self.conv(x))))


class Network(nn.Module):
    """Strided, grouped, transposed and 1x1 convolutions around two blocks, one of which runs twice; a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU(inplace=True)
        self.first, self.second = Block(16), Block(16)
        self.grouped = nn.Conv2d(16, 24, 3, dilation=2, padding=2, groups=4)
        self.group_norm = nn.GroupNorm(4, 24)
        self.wide = nn.ConvTranspose2d(24, 12, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(12, 64, 3, stride=4)
        self.classifier = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.second(self.second(self.first(x)))
        x = self.deep(torch.relu(self.wide(self.group_norm(self.grouped(x)))))
        return self.classifier(x.flatten(2).mean(2))


def network(seed: int = 0) -> Network:
    """Always the same base, in evaluation mode, its statistics not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Network()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean, std=0.3)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
        return model.eval()


def adapted(method: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """The base with a perturbed adapter."""
    torch.manual_seed(seed)
    return randomise(convpeft.attach(network(), method, **arguments), seed)


def saved(folder: Path, method: str, seed: int = 0, *, classes: Any = None, **arguments: Any) -> Path:
    """Such an adapter in a file."""
    return convpeft.save(adapted(method, seed, **arguments), folder / f"{method}-{seed}", classes=classes)


def one_by_one(path: Path | None, images: Tensor) -> Tensor:
    """What a fresh base with the adapter loaded on it says to each image alone."""
    model = network() if path is None else convpeft.load(network(), path).eval()
    with torch.no_grad():
        return torch.cat([model(image.unsqueeze(0)) for image in images])
