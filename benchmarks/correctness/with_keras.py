"""Keras 3 on its torch backend: single layers with `enable_lora`, merged by saving and loading them.

It has no file of an adapter and no way to take one off, so that whole networks and what belongs to files are left out.
Keras 3.15 has no `enable_dora`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import torch
from formulas import as_array, output
from library import CONVOLUTIONS, Adapted, Library
from outcomes import RIGHT, WRONG, NotOfferedError
from torch import Tensor, nn

from contract.networks import Geometry

LAYERS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}


class _Adapted(Adapted):
    def __init__(self, layer: nn.Module, rank: int) -> None:
        self.plain = layer
        self.model = _network(layer)
        self.conv = self.model.layers[0]
        self.conv.enable_lora(rank, lora_alpha=2 * rank)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((v.name, v.value) for v in self.conv.trainable_variables if v.name != "bias")

    def outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x, training=False)

    def merged(self, x: Tensor) -> Tensor:
        """A file of weights holds the merged kernel."""
        plain = _network(self.plain)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            self.model.save_weights(Path(folder) / "all.weights.h5")
            plain.load_weights(Path(folder) / "all.weights.h5")
            return plain(x, training=False)

    def unloaded(self) -> nn.Module:
        raise NotOfferedError

    def save(self, folder: Path) -> None:
        raise NotOfferedError


class Keras(Library):
    package = "keras"
    # Its LoRA tensors are float32 always; the output is linear in each, so that a large step is exact.
    step_sizes, gradient_tolerance = (0.1,), 1e-3

    def offers(self, layer: nn.Module, method: str) -> bool:
        return isinstance(layer, CONVOLUTIONS) and _padding(layer) is not None

    def adapt(self, base: nn.Module, method: str, rank: int) -> Adapted:
        return _Adapted(base.get_submodule("conv"), rank)

    def load(self, base: nn.Module, method: str, folder: Path) -> Adapted:
        raise NotOfferedError

    def plain_outputs(self, base: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return _network(base.get_submodule("conv"))(x, training=False)

    def expected(
        self, adapted: Adapted, method: str, rank: int, geometry: Geometry, base: nn.Module, x: Tensor
    ) -> Tensor:
        """W + scale * A B, kernels as `(*kernel, in/groups, out)`."""
        layer = base.get_submodule("conv")
        tensors = {name: tensor.detach().double().numpy() for name, tensor in adapted.tensors()}
        delta = 2.0 * tensors["lora_kernel_a"] @ tensors["lora_kernel_b"]
        dims = delta.ndim - 2
        weight = as_array(layer.weight)
        return output(geometry, x, weight + delta.transpose(dims + 1, dims, *range(dims)), as_array(layer.bias))

    def extra_measures(
        self, method: str, geometry: Geometry, number: int, rank: int
    ) -> dict[str, Callable[[], dict[str, Any]]]:
        return {"batch norm": lambda: self._batch_norm(geometry, number, rank)}

    def _batch_norm(self, geometry: Geometry, number: int, rank: int) -> dict[str, Any]:
        """The layer and a BatchNorm behind it that is frozen by `trainable = False`."""
        base = self.layer_model(geometry, number, torch.float32)
        x = torch.randn(8, geometry.in_channels, *geometry.space)
        norm = keras.layers.BatchNormalization(axis=1)
        model = _network(base.get_submodule("conv"), norm)
        model.layers[0].enable_lora(rank, lora_alpha=2 * rank)
        norm.trainable = False
        before = [variable.value.detach().clone() for variable in norm.variables]
        model(x, training=True)
        same = all(torch.equal(v.value, old) for v, old in zip(norm.variables, before, strict=True))
        return {"outcome": RIGHT if same else WRONG}


def _padding(layer: nn.Module) -> str | None:
    """Keras's word for the padding, or None: it knows "valid" and "same" with zeros, and no stride with dilation."""
    if max(layer.stride) > 1 and max(layer.dilation) > 1:
        return None
    if layer.padding == "valid" or (not isinstance(layer.padding, str) and not any(layer.padding)):
        return "valid"
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    if layer.padding == "same":
        return "same" if layer.padding_mode == "zeros" or not any(reach) else None
    fits = layer.padding_mode == "zeros" and max(layer.stride) == 1
    return "same" if fits and all(2 * p == r for p, r in zip(layer.padding, reach, strict=True)) else None


def _network(layer: nn.Module, *behind: Any) -> Any:
    """The same layer in Keras, with its weights, and what comes behind it."""
    dims = len(layer.kernel_size)
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    twin = LAYERS[dims](
        layer.out_channels,
        layer.kernel_size,
        strides=layer.stride,
        padding=_padding(layer),
        dilation_rate=layer.dilation,
        groups=layer.groups,
        use_bias=layer.bias is not None,
        data_format="channels_first",
        dtype=dtype,
    )
    model = keras.Sequential([keras.Input((layer.in_channels, *[None] * dims), dtype=dtype), twin, *behind])
    weight = layer.weight.detach().permute(*range(2, dims + 2), 1, 0)
    twin.set_weights([weight.numpy(), *([] if layer.bias is None else [layer.bias.detach().numpy()])])
    return model


def library() -> Library:
    return Keras()
