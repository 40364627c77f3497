"""The networks with random weights and ten classes, as torchvision and timm build them."""

from __future__ import annotations

import convpeft._torchvision  # noqa: F401  before torchvision, which fails beside CPU torch

# isort: split
import torch
from plan import CLASSES, NETS, SEED, Cell
from torch import nn


def build(cell: Cell) -> nn.Module:
    """A fresh network in training mode, the same numbers every time."""
    torch.manual_seed(SEED)
    if NETS[cell.net].library == "torchvision":
        import torchvision

        return torchvision.models.get_model(cell.net, weights=None, num_classes=CLASSES).train()
    import timm

    return timm.create_model(cell.net, pretrained=False, num_classes=CLASSES).train()


def head_path(model: nn.Module) -> str:
    """Where the classifier is."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return next(path for path in reversed(linear) if model.get_submodule(path).out_features == CLASSES)


def convolution_paths(model: nn.Module, first: str = "") -> list[str]:
    """Every convolution from the stage `first` on, in the order of the model."""
    names = [name for name, _ in model.named_children()]
    stages = names[names.index(first) :] if first else names
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [path for path in paths if path.split(".")[0] in stages]


def plain(cell: Cell) -> nn.Module:
    """The network for inference, all parameters without gradients."""
    return build(cell).requires_grad_(False).eval().to(cell.device)
