"""Our lora-c in loralib's layout is loralib's ConvLoRA, and our lora its Linear, from copied tensors.

loralib rebuilds the weight and leaves the rest to the layer, so every geometry is right that it can express: its
kernels are square and 2-d (Conv1d and Conv3d fail in the forward pass).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

from peers.layers import (
    ALPHA,
    DILATED,
    GROUPED,
    PADDED,
    PLAIN,
    RANK,
    Peer,
    assert_peer_agrees,
    convolution,
    fill,
    linear,
)

STRIDED: dict[str, dict[str, Any]] = {"strided": {"kernel_size": 5, "stride": 2, "padding": 2, "bias": False}}
SQUARE = {name: arguments for name, arguments in PLAIN.items() if isinstance(arguments["kernel_size"], int)}
CONVOLUTIONS = SQUARE | STRIDED | DILATED | GROUPED | PADDED


@pytest.fixture(scope="module")
def loralib() -> ModuleType:
    return pytest.importorskip("loralib")


def peer(loralib: ModuleType, rank: int) -> Peer:
    """loralib's layer around ours, filled and not merged."""

    def adapt(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        common = {"r": rank, "lora_alpha": ALPHA}
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size[0])
            twin = loralib.Conv2d(*sizes, groups=layer.groups, **common)
            twin.conv = layer
        else:
            twin = loralib.Linear(layer.in_features, layer.out_features, **common)
            twin.weight, twin.bias = layer.weight, layer.bias
        values = {"lora_A": tensors["down"], "lora_B": tensors["up"]}
        fill({name: p for name, p in twin.named_parameters() if name.startswith("lora_")}, values)
        return twin

    return adapt


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_lora_c_on_a_convolution_is_that_of_loralib(loralib: ModuleType, arguments: dict) -> None:
    rank = 1 if arguments.get("groups") == 16 else RANK  # ours would clamp rank 2 there, loralib's outgrows the layer
    options = {"rank": rank, "alpha": ALPHA, "layout": "loralib", "setting": "rk"}
    assert_peer_agrees(peer(loralib, rank), convolution(arguments), "lora-c", **options)


def test_lora_on_a_linear_layer_is_that_of_loralib(loralib: ModuleType) -> None:
    assert_peer_agrees(peer(loralib, RANK), linear(), "lora", rank=RANK, alpha=ALPHA)
