"""Our lora is that of Keras 3, on Conv2D and Dense, from copied tensors.

Keras lays kernels out as (*kernel, in/groups, out). It pads a strided convolution unevenly under "same", which torch
has no word for, and refuses stride and dilation together. Keras 3.15 has no DoRA: there is no `enable_dora` in any
release yet (keras#23382 for Dense and keras#23383 for convolutions are proposals), so `dora` has no peer here.
"""

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

from peers.layers import ALPHA, RANK, Peer, assert_peer_agrees, convolution, fill, linear

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "same": {"kernel_size": 3, "padding": 1},
    "oblong-strided": {"kernel_size": (3, 2), "stride": (2, 1), "bias": False},
    "pointwise": {"kernel_size": 1},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "grouped": {"kernel_size": 3, "stride": 2, "groups": 4},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 16},
}


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Keras on torch; at import it reads its backend from the environment and writes a file into its home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_TORCH_DEVICE", "cpu")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        yield pytest.importorskip("keras", minversion="3.15")


def keras_order(weight: Tensor) -> Tensor:
    """(out, in/groups, *kernel) as (*kernel, in/groups, out)."""
    return weight.permute(*range(2, weight.ndim), 1, 0)


def peer(keras: ModuleType) -> Peer:
    """The same layer in Keras, with its LoRA filled."""

    def adapt(layer: nn.Module, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        twin = conv2d(keras, layer) if isinstance(layer, nn.Conv2d) else dense(keras, layer)
        weights = [keras_order(layer.weight.detach())] + ([] if layer.bias is None else [layer.bias.detach()])
        twin.set_weights([weight.numpy() for weight in weights])
        twin.enable_lora(RANK, lora_alpha=ALPHA)
        down = tensors["down"].unflatten(1, layer.weight.shape[1:])  # (rank, in/groups, *kernel)
        values = {"lora_kernel_a": keras_order(down), "lora_kernel_b": tensors["up"].T}
        fill({v.name: v.value for v in twin.trainable_variables if v.name != "bias"}, values)
        return twin

    return adapt


def conv2d(keras: ModuleType, layer: nn.Conv2d) -> Any:
    twin = keras.layers.Conv2D(
        layer.out_channels,
        layer.kernel_size,
        strides=layer.stride,
        padding="same" if any(layer.padding) else "valid",
        dilation_rate=layer.dilation,
        groups=layer.groups,
        use_bias=layer.bias is not None,
        data_format="channels_first",
    )
    twin.build((None, layer.in_channels, 7, 6))
    return twin


def dense(keras: ModuleType, layer: nn.Linear) -> Any:
    twin = keras.layers.Dense(layer.out_features)
    twin.build((None, layer.in_features))
    return twin


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_lora_on_a_convolution_is_that_of_keras(keras: ModuleType, arguments: dict) -> None:
    assert_peer_agrees(peer(keras), convolution(arguments), "lora", rank=RANK, alpha=ALPHA)


def test_lora_on_a_linear_layer_is_that_of_keras(keras: ModuleType) -> None:
    assert_peer_agrees(peer(keras), linear(), "lora", rank=RANK, alpha=ALPHA)
