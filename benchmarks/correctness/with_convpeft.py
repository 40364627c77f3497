"""convpeft itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from formulas import as_array, output, own_weight
from library import CONVOLUTIONS, TRANSPOSED, Adapted, Library, arrays
from outcomes import NotOfferedError
from roster import SHARED
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import MAPS, METHODS, is_branch, reference_of, train_steps
from contract.networks import Geometry, adapter_tensors
from convpeft.injection import adapted_layers

MERGING = tuple(method for method in METHODS if method in MAPS and not is_branch(method, {}))


class _Adapted(Adapted):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return adapter_tensors(self.model)

    def step(self, x: Tensor) -> None:
        train_steps(self.model, x, torch.optim.SGD(convpeft.param_groups(self.model, lr=0.05), lr=0.05), 1)

    def merged(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return convpeft.merged(self.model.eval())(x)

    def disabled(self, x: Tensor) -> Tensor:
        with torch.no_grad(), convpeft.disabled(self.model.eval()):
            return self.model(x)

    def unloaded(self) -> nn.Module:
        return convpeft.detach(self.model)

    def save(self, folder: Path) -> None:
        convpeft.save(self.model, folder / "adapter")


class Convpeft(Library):
    package = "convpeft"

    def offers(self, layer: nn.Module, method: str) -> bool:
        return True

    def adapt(self, base: nn.Module, method: str, rank: int) -> Adapted:
        known = {option.name for option in convpeft.method_info(method).options}
        options: dict[str, Any] = {"rank": rank} if "rank" in known else {}
        if "alpha" in known:
            options["alpha"] = 2.0 * rank
        if method == "adalora":
            options["target_rank"] = 1.0
        if method in SHARED:  # as the rivals: linear layers too
            options["include"] = ["conv"] + ["linear"] * any(isinstance(layer, nn.Linear) for layer in base.modules())
        return _Adapted(convpeft.attach(base, method, **options))

    def adapted_convolutions(self, base: nn.Module, method: str, rank: int) -> int:
        """A layer on which even rank 1 is larger than the layer itself gets none."""
        try:
            model = self.adapt(copy.deepcopy(base), method, rank).model
        except convpeft.OptionError:
            return 0
        return sum(isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)) for _, layer in adapted_layers(model))

    def load(self, base: nn.Module, method: str, folder: Path) -> Adapted:
        return _Adapted(convpeft.load(base, folder / "adapter"))

    def expected(
        self, adapted: Adapted, method: str, rank: int, geometry: Geometry, base: nn.Module, x: Tensor
    ) -> Tensor:
        if method not in MERGING:
            raise NotOfferedError
        layer = base.get_submodule("conv")
        tensors = {name.rpartition(".")[2]: value for name, value in arrays(adapted.tensors()).items()}
        options = {option.name: option.default for option in convpeft.method_info(method).options}
        options |= {"groups": geometry.groups}
        options |= {"rank": rank} if "rank" in options else {}
        options |= {"alpha": 2.0 * rank} if "alpha" in options else {}
        new = reference_of(method).new_tensors(own_weight(layer, geometry), as_array(layer.bias), tensors, options)
        return output(geometry, x, *new)


def library() -> Library:
    return Convpeft()
