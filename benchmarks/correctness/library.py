"""What the comparison asks of a library; each of the files `with_*.py` answers for one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from outcomes import NotOfferedError
from torch import Tensor, nn

from contract.networks import Geometry

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


class Adapted(ABC):
    """A network with an adapter of one library, and the library's own ways to use it."""

    model: nn.Module

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that belongs to the adapter."""

    def outputs(self, x: Tensor) -> Tensor:
        """Evaluation mode, not merged."""
        with torch.no_grad():
            return self.model.eval()(x)

    def step(self, x: Tensor) -> None:
        """One training step."""
        self.model.train()
        optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.05)
        self.model(x).square().mean().backward()
        optimizer.step()

    @abstractmethod
    def merged(self, x: Tensor) -> Tensor:
        """What the merged network gives, in evaluation mode."""

    def disabled(self, x: Tensor) -> Tensor:
        """What the network gives with its adapter switched off, in evaluation mode."""
        raise NotOfferedError

    @abstractmethod
    def unloaded(self) -> nn.Module:
        """The network with its adapter taken out again."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the adapter as the library does."""


class Library(ABC):
    """One library."""

    package: str  # the folder of its sources: errors raised there may be refusals
    # A step too small drowns in roundings, one too large in the curve: a wrong gradient is wrong at all of them.
    step_sizes, gradient_tolerance = (1e-6, 1e-5, 1e-4), 1e-5

    @abstractmethod
    def adapt(self, base: nn.Module, method: str, rank: int) -> Adapted:
        """Put an adapter on every convolution and linear layer that the library says it supports; alpha is 2 rank."""

    @abstractmethod
    def load(self, base: nn.Module, method: str, folder: Path) -> Adapted:
        """What `save` wrote, on another copy of the network, as the library does."""

    def offers(self, layer: nn.Module, method: str) -> bool:
        """Whether the library says that it takes such a layer."""
        return isinstance(layer, (*CONVOLUTIONS, nn.Linear))

    def adapted_convolutions(self, base: nn.Module, method: str, rank: int) -> int:
        """How many convolutions of a network get an adapter."""
        convolutions = [module for module in base.modules() if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))]
        return sum(self.offers(module, method) for module in convolutions)

    @abstractmethod
    def expected(
        self, adapted: Adapted, method: str, rank: int, geometry: Geometry, base: nn.Module, x: Tensor
    ) -> Tensor:
        """What the single layer should give by the formula of the method."""

    def plain_outputs(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the network gives without an adapter, in evaluation mode."""
        with torch.no_grad():
            return base.eval()(x)

    def extra_measures(
        self, method: str, geometry: Geometry, number: int, rank: int
    ) -> dict[str, Callable[[], dict[str, Any]]]:
        """What a library without whole networks has measured on a single layer instead."""
        return {}

    def layer_model(self, geometry: Geometry, seed: int, dtype: torch.dtype) -> nn.Module:
        """A network of one layer, by the name `conv`."""
        torch.manual_seed(seed)
        model = nn.Sequential()
        model.add_module("conv", geometry.build().to(dtype))
        return model.eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def one_ulp(model: nn.Module) -> nn.Module:
    """The same network, but for one weight of its first layer that is one unit in the last place larger."""
    other = copy.deepcopy(model)
    weight = next(other.parameters()).data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
    return other


def arrays(named: Iterator[tuple[str, Tensor]] | dict[str, Tensor]) -> dict[str, Any]:
    """Tensors in float64 numpy."""
    items = named.items() if isinstance(named, dict) else named
    return {name: tensor.detach().double().numpy() for name, tensor in items}
