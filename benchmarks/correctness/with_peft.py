"""peft as in its documentation: `get_peft_model`, `merge_and_unload`, `save_pretrained`, `PeftModel.from_pretrained`.

Grouped layers get the smallest rank that is a multiple of their groups, which peft asks for, with alpha to match.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import convpeft._torchvision  # noqa: F401  peft imports transformers, that torchvision, which fails beside CPU torch

# isort: split
import peft
import torch
from formulas import (
    as_array,
    decomposed,
    dense,
    grouped_low_rank,
    hadamard,
    kronecker,
    low_rank,
    output,
)
from library import CONVOLUTIONS, NORMS, Adapted, Library, arrays
from outcomes import NotOfferedError
from torch import Tensor, nn

from contract.networks import Geometry

LORA = ("lora", "lora-norms", "dora")


class _Adapted(Adapted):
    def __init__(self, model: peft.PeftModel) -> None:
        self.model = model

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if any(mark in name for mark in ("lora_", "hada_", "lokr_", "modules_to_save")):
                yield name, tensor

    def merged(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.eval().merge_and_unload().eval()(x)

    def disabled(self, x: Tensor) -> Tensor:
        with torch.no_grad(), self.model.eval().disable_adapter():
            return self.model(x)

    def unloaded(self) -> nn.Module:
        return self.model.unload()

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(str(folder / "adapter"))


class Peft(Library):
    package = "peft"

    def offers(self, layer: nn.Module, method: str) -> bool:
        if method in LORA:
            return isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)

    def adapt(self, base: nn.Module, method: str, rank: int) -> Adapted:
        targets = [path for path, module in base.named_modules() if self.offers(module, method)]
        if not targets:
            raise NotOfferedError
        if method not in LORA:
            config = peft.LoHaConfig if method == "loha" else peft.LoKrConfig
            return _Adapted(peft.get_peft_model(base, config(r=rank, alpha=2 * rank, target_modules=targets)))
        ranks = {path: _fitting(base.get_submodule(path), rank) for path in targets}
        norms = [path for path, module in base.named_modules() if isinstance(module, NORMS)]
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=targets,
            rank_pattern=ranks,
            alpha_pattern={path: 2 * value for path, value in ranks.items()},
            use_dora=method == "dora",
            modules_to_save=norms if method == "lora-norms" and norms else None,
        )
        return _Adapted(peft.get_peft_model(base, config))

    def load(self, base: nn.Module, method: str, folder: Path) -> Adapted:
        return _Adapted(peft.PeftModel.from_pretrained(base, str(folder / "adapter")))

    def expected(
        self, adapted: Adapted, method: str, rank: int, geometry: Geometry, base: nn.Module, x: Tensor
    ) -> Tensor:
        layer = base.get_submodule("conv")
        weight, bias, groups = as_array(layer.weight), as_array(layer.bias), geometry.groups
        assert weight is not None
        tensors = {_short(name): value for name, value in arrays(adapted.tensors()).items()}
        if method == "loha":
            return output(geometry, x, weight + hadamard(tensors, 2.0, weight.shape), bias)
        if method == "lokr":
            return output(geometry, x, weight + kronecker(tensors, 2.0, weight.shape), bias)
        up, down = tensors["lora_B"], tensors["lora_A"]
        if groups > 1:  # its first factor reads all channels: another family of updates, taken as it is
            new = dense(weight, groups) + grouped_low_rank(up, down, 2.0, groups)
        else:
            new = weight + low_rank(up, down, 2.0, weight.shape)
        if method == "dora":
            new = decomposed(new, tensors["lora_magnitude_vector"])
        return output(geometry, x, new, bias, groups=1)


def _fitting(layer: nn.Module, rank: int) -> int:
    groups = getattr(layer, "groups", 1)
    return groups * math.ceil(rank / groups)


def _short(name: str) -> str:
    """`base_model.model.conv.lora_A.default.weight` as `lora_A`."""
    return next(word for word in name.split(".") if word.startswith(("lora_", "hada_", "lokr_")))


def library() -> Library:
    return Peft()
