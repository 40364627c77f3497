"""Our lora, dora, loha and lokr are LyCORIS's LoCon, decomposed LoCon, LoHa and LoKr, from copied tensors.

LyCORIS rebuilds the weight and convolves with it, so all but the padding mode of a layer is right. It is its forward
pass that is compared: merging LoHa or LoKr there applies the scale twice. Its DoRA has the paper's length for each
filter (`wd_on_out`, the default); with `wd_on_out=False` the lengths are of input channels, which is another method.
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
    LOHA_NAMES,
    LOKR_NAMES,
    LOKR_OPTIONS,
    PLAIN,
    RANK,
    Peer,
    assert_peer_agrees,
    convolution,
    fill,
    linear,
    magnitudes,
    renamed,
)

CONVOLUTIONS = PLAIN | DILATED | GROUPED
OPTIONS = {"rank": RANK, "alpha": ALPHA}


@pytest.fixture(scope="module")
def lycoris() -> ModuleType:
    return pytest.importorskip("lycoris")


def locon(lycoris: ModuleType, **arguments: Any) -> Peer:
    def adapt(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        module = lycoris.LoConModule("adapter", layer, lora_dim=RANK, alpha=ALPHA, **arguments)
        values = {"lora_down.weight": tensors["down"], "lora_up.weight": tensors["up"]}
        if "gain" in tensors:
            values["dora_scale"] = magnitudes(layer, tensors["gain"])
        fill(dict(module.named_parameters()), values)
        return module

    return adapt


def loha(lycoris: ModuleType) -> Peer:
    def adapt(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        module = lycoris.LohaModule("adapter", layer, lora_dim=RANK, alpha=ALPHA)
        fill(dict(module.named_parameters()), renamed(tensors, LOHA_NAMES))
        return module

    return adapt


def lokr(lycoris: ModuleType, *, rank: int, **arguments: Any) -> Peer:
    def adapt(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        module = lycoris.LokrModule("adapter", layer, lora_dim=rank, **arguments)
        fill(dict(module.named_parameters()), renamed(tensors, LOKR_NAMES))
        return module

    return adapt


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_lora_on_a_convolution_is_the_locon_of_lycoris(lycoris: ModuleType, arguments: dict) -> None:
    assert_peer_agrees(locon(lycoris), convolution(arguments), "lora", **OPTIONS)


def test_lora_on_a_linear_layer_is_that_of_lycoris(lycoris: ModuleType) -> None:
    assert_peer_agrees(locon(lycoris), linear(), "lora", **OPTIONS)


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_dora_on_a_convolution_is_that_of_lycoris(lycoris: ModuleType, arguments: dict) -> None:
    adapt = locon(lycoris, weight_decompose=True, wd_on_out=True)
    assert_peer_agrees(adapt, convolution(arguments), "dora", **OPTIONS)


def test_dora_on_a_linear_layer_is_that_of_lycoris(lycoris: ModuleType) -> None:
    adapt = locon(lycoris, weight_decompose=True, wd_on_out=True)
    assert_peer_agrees(adapt, linear(), "dora", **OPTIONS)


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_loha_on_a_convolution_is_that_of_lycoris(lycoris: ModuleType, arguments: dict) -> None:
    assert_peer_agrees(loha(lycoris), convolution(arguments), "loha", **OPTIONS)


def test_loha_on_a_linear_layer_is_that_of_lycoris(lycoris: ModuleType) -> None:
    assert_peer_agrees(loha(lycoris), linear(), "loha", **OPTIONS)


@pytest.mark.parametrize("options", LOKR_OPTIONS.values(), ids=LOKR_OPTIONS)
@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_lokr_on_a_convolution_is_that_of_lycoris(lycoris: ModuleType, arguments: dict, options: dict) -> None:
    assert_peer_agrees(lokr(lycoris, **options), convolution(arguments), "lokr", **options)


@pytest.mark.parametrize("options", LOKR_OPTIONS.values(), ids=LOKR_OPTIONS)
def test_lokr_on_a_linear_layer_is_that_of_lycoris(lycoris: ModuleType, options: dict) -> None:
    assert_peer_agrees(lokr(lycoris, **options), linear(), "lokr", **options)
