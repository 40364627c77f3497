"""loralib as in its README: layers put in by hand, `mark_only_lora_as_trainable`, `lora_state_dict`; `eval()` merges.

Its README offers nn.Linear and nn.Conv2d, and its convolution asks for a square kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import loralib
import torch
from formulas import as_array, output
from library import Adapted, Library, arrays
from outcomes import NotOfferedError
from torch import Tensor, nn

from contract.networks import Geometry


class _Adapted(Adapted):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _layers(self) -> list[tuple[str, nn.Module]]:
        found = (loralib.Conv2d, loralib.Linear)
        return [(path, module) for path, module in self.model.named_modules() if isinstance(module, found)]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in self.model.named_parameters() if "lora_" in name)

    def outputs(self, x: Tensor) -> Tensor:
        """`eval()` merges: only the layers with LoRA stay in training mode, where they are not merged."""
        self.model.eval()
        for _, layer in self._layers():
            layer.train()
        with torch.no_grad():
            return self.model(x)

    def merged(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.eval()(x)

    def unloaded(self) -> nn.Module:
        """Its README: "Calling model.train() again will undo the merge"; then the plain layers go back in."""
        self.model.eval()
        self.model.train()
        for path, layer in self._layers():
            plain = layer.conv if isinstance(layer, loralib.Conv2d) else _plain(layer)
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, plain)
        return self.model

    def save(self, folder: Path) -> None:
        torch.save(loralib.lora_state_dict(self.model), folder / "adapter.pt")


def _plain(layer: nn.Module) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight, linear.bias = layer.weight, layer.bias
    return linear


class Loralib(Library):
    package = "loralib"

    def offers(self, layer: nn.Module, method: str) -> bool:
        square = isinstance(layer, nn.Conv2d) and len(set(layer.kernel_size)) == 1
        return square or isinstance(layer, nn.Linear)

    def adapt(self, base: nn.Module, method: str, rank: int) -> Adapted:
        paths = [path for path, module in base.named_modules() if self.offers(module, method)]
        if not paths:
            raise NotOfferedError
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(base.get_submodule(parent), name, _twin(base.get_submodule(path), rank))
        loralib.mark_only_lora_as_trainable(base)
        return _Adapted(base)

    def load(self, base: nn.Module, method: str, folder: Path) -> Adapted:
        tensors = torch.load(folder / "adapter.pt")
        ranks = {max(1, value.shape[0]) for name, value in tensors.items() if name == "classifier.lora_A"}
        adapted = self.adapt(base, method, ranks.pop())
        base.load_state_dict(tensors, strict=False)
        return adapted

    def expected(
        self, adapted: Adapted, method: str, rank: int, geometry: Geometry, base: nn.Module, x: Tensor
    ) -> Tensor:
        """Its own layout: B A as one matrix, read as the weight."""
        layer = base.get_submodule("conv")
        weight, bias = as_array(layer.weight), as_array(layer.bias)
        assert weight is not None
        tensors = {name.rpartition(".")[2]: value for name, value in arrays(adapted.tensors()).items()}
        new = weight + 2.0 * (tensors["lora_B"] @ tensors["lora_A"]).reshape(weight.shape)
        return output(geometry, x, new, bias)


def _twin(layer: nn.Module, rank: int) -> nn.Module:
    common = {"r": rank, "lora_alpha": 2 * rank}
    if isinstance(layer, nn.Linear):
        twin = loralib.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, **common)
        twin.load_state_dict(layer.state_dict(), strict=False)
    else:
        twin = loralib.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            **common,
        )
        twin.conv.load_state_dict(layer.state_dict())
    return twin.to(layer.weight.dtype)  # in training mode, not merged


def library() -> Library:
    return Loralib()
