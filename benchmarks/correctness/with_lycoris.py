"""LyCORIS: `create_lycoris`, `apply_to`, `restore` and `merge_to`, `save_weights`, `create_lycoris_from_weights`.

These are the ways of its README and of its standalone example. Its rows with "alpha = rank" have the scale 1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from formulas import as_array, decomposed, hadamard, kronecker, low_rank, output
from library import Adapted, Library, arrays
from lycoris import create_lycoris, create_lycoris_from_weights
from lycoris.logging import logger
from outcomes import NotOfferedError
from torch import Tensor, nn

from contract.networks import Geometry

logger.setLevel(logging.CRITICAL)
ONE = "-one"


class _Adapted(Adapted):
    def __init__(self, base: nn.Module, network: nn.Module) -> None:
        self.model, self.network = base, network
        dtype = next(base.parameters()).dtype
        network.apply_to()
        network.to(dtype)  # not before: `apply_to` registers the modules

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self.network.named_parameters()

    def outputs(self, x: Tensor) -> Tensor:
        self.network.eval()
        return super().outputs(x)

    def step(self, x: Tensor) -> None:
        self.model.train()
        self.network.train()
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05)
        self.model(x).square().mean().backward()
        optimizer.step()

    def merged(self, x: Tensor) -> Tensor:
        self.network.restore()
        with torch.no_grad():
            self.network.merge_to(1.0)
            return self.model.eval()(x)

    def disabled(self, x: Tensor) -> Tensor:
        raise NotOfferedError  # `set_multiplier(0)` scales the update by zero; `restore` takes it off

    def unloaded(self) -> nn.Module:
        self.network.restore()
        return self.model

    def save(self, folder: Path) -> None:
        self.network.save_weights(str(folder / "adapter.safetensors"), None, {})


class Lycoris(Library):
    package = "lycoris"

    def adapt(self, base: nn.Module, method: str, rank: int) -> Adapted:
        if not any(self.offers(module, method) for module in base.modules()):
            raise NotOfferedError
        base.requires_grad_(False)
        network = create_lycoris(
            base,
            1.0,
            linear_dim=rank,
            linear_alpha=float(rank if method.endswith(ONE) else 2 * rank),
            algo={"dora": "lora"}.get(method, method.removesuffix(ONE)),
            dora_wd=method == "dora",
            warn_on_unmatched=False,
        )
        return _Adapted(base, network)

    def load(self, base: nn.Module, method: str, folder: Path) -> Adapted:
        network, _ = create_lycoris_from_weights(1.0, str(folder / "adapter.safetensors"), base)
        return _Adapted(base, network)

    def expected(
        self, adapted: Adapted, method: str, rank: int, geometry: Geometry, base: nn.Module, x: Tensor
    ) -> Tensor:
        layer = base.get_submodule("conv")
        weight, bias = as_array(layer.weight), as_array(layer.bias)
        assert weight is not None
        tensors = arrays(adapted.tensors())
        tensors = {name.partition(".")[2].removesuffix(".weight"): value for name, value in tensors.items()}
        scale = 1.0 if method.endswith(ONE) else 2.0
        if method == "full":
            return output(geometry, x, tensors["weight"], tensors.get("bias"))
        if method.startswith("loha"):
            return output(geometry, x, weight + hadamard(tensors, scale, weight.shape), bias)
        if method.startswith("lokr"):  # it says that two whole factors have no scale
            scale = 1.0 if {"lokr_w1", "lokr_w2"} <= set(tensors) else scale
            return output(geometry, x, weight + kronecker(tensors, scale, weight.shape), bias)
        new = weight + low_rank(tensors["lora_up"], tensors["lora_down"], scale, weight.shape)
        return output(geometry, x, decomposed(new, tensors["dora_scale"]) if method == "dora" else new, bias)


def library() -> Library:
    return Lycoris()
