"""A small network, its base as an ONNX file, and adapters that say something; for the tests of patching."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise
from convpeft.deployment.onnx_base import export_base


class Block(nn.Module):
    """Spatial, depthwise and pointwise convolution with norms, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.pointwise(torch.relu(self.norm2(self.depthwise(y)))) + x)


class Network(nn.Module):
    """As small as a residual network with depthwise and linear layers gets."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.layer1, self.layer2 = Block(8), Block(8)
        self.hidden = nn.Linear(8, 6, bias=False)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(torch.relu(self.norm(self.stem(x)))))
        return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))


def network() -> nn.Module:
    """The network with statistics and affine tensors as training leaves them, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settled(Network())


def settled(model: nn.Module) -> nn.Module:
    """A network in evaluation whose norms do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def write_base(model: nn.Module, path: Path, example: Tensor) -> Path:
    """The base's file, as `convpeft export RUN --base` writes it."""
    export_base(model, path, images=example)
    return path


def save_adapter(model: nn.Module, path: Path, method: str, **options: object) -> Path:
    """Attach, perturb every tensor, save."""
    convpeft.attach(model, method, **options)
    return convpeft.save(randomise(model).eval(), path)


def run_onnx(path: Path, x: Tensor) -> np.ndarray:
    """What onnxruntime makes of a file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
