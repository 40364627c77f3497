"""A base of ordinary layers, and what a round trip compares."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from contract.networks import perturb, relative_error

TOLERANCE = 1e-5  # the same formula in another order of float32 operations
LEAST_EFFECT = 0.01  # an adapter that hardly moves the output would agree with anything


def base(*, norm: bool = False, grouped: bool = False) -> nn.Sequential:
    """Strided, oblong, pointwise and linear layers; the head has four outputs."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(4, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(16, 12, (3, 2), padding=(1, 0), bias=False, groups=4 if grouped else 1),
        nn.Conv2d(12, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 18),
        nn.ReLU(),
        nn.Linear(18, 4),
    ]
    return nn.Sequential(*layers).eval()


LAYERS = ["0", "3", "4", "7"]


def images() -> Tensor:
    return torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(1))


def perturbed(module: nn.Module, own: Callable[[str], bool]) -> nn.Module:
    """Move every parameter that the peer has added."""
    perturb(((name, p) for name, p in module.named_parameters() if own(name)), seed=3)
    return module


def assert_equal_outputs(found: nn.Module, expected: nn.Module, plain: nn.Module | None = None, x: Any = None) -> None:
    x = images() if x is None else x
    with torch.no_grad():
        expected_output, found_output = expected(x), found(x)
        if plain is not None:
            assert relative_error(expected_output, plain(x)) > LEAST_EFFECT
    assert relative_error(found_output, expected_output) <= TOLERANCE


def twin(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
