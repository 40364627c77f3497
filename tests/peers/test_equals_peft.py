"""Our lora, dora, loha and lokr are peft's, from copied tensors, wherever peft adapts the layer that it was given.

What is left out, and why:
- LoRA and DoRA with dilation or a padding mode: peft's own first convolution does not take them (peft#3697).
- LoRA and DoRA on grouped layers: that convolution reads all channels and the second one is grouped, which is another
  family of updates.
- LoHa and LoKr with a padding mode: they rebuild the weight and pad its part with zeros.
peft takes |V| of DoRA as a constant in the gradient; outputs are not touched by that.
"""

from collections.abc import Callable, Mapping
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

REBUILT = PLAIN | DILATED | GROUPED
# Where both factors are whole, peft has the scale alpha / rank, and LyCORIS and ours 1.
PEFT_LOKR_OPTIONS = LOKR_OPTIONS | {"whole": {"rank": 8, "alpha": 8.0}}
OPTIONS = {"rank": RANK, "alpha": ALPHA}


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip("peft")


def peer(peft: ModuleType, config: Any, values_of: Callable[[nn.Module, Mapping[str, Tensor]], dict]) -> Peer:
    """peft's adapter of a configuration, filled with the values named after its own tensors."""

    def adapt(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        values = values_of(layer, tensors)
        model = peft.inject_adapter_in_model(config, nn.Sequential(layer))
        fill({name.split(".")[1]: p for name, p in model.named_parameters() if "base_layer" not in name}, values)
        return model

    return adapt


def lora_values(layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = {"lora_A": tensors["down"], "lora_B": tensors["up"]}
    if "gain" in tensors:
        values["lora_magnitude_vector"] = magnitudes(layer, tensors["gain"])
    return values


def loha_values(layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return renamed(tensors, LOHA_NAMES)


def lokr_values(layer: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return renamed(tensors, LOKR_NAMES)


def lokr_config(peft: ModuleType, *, rank: int, alpha: float, decompose_both: bool = False, factor: int = -1) -> Any:
    return peft.LoKrConfig(
        r=rank, alpha=alpha, decompose_both=decompose_both, decompose_factor=factor, target_modules=["0"]
    )


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("arguments", PLAIN.values(), ids=PLAIN)
def test_lora_and_dora_on_a_convolution_are_those_of_peft(
    peft: ModuleType, arguments: dict, method: str, rslora: bool
) -> None:
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_dora=method == "dora", use_rslora=rslora, target_modules=["0"]
    )
    adapt = peer(peft, config, lora_values)
    assert_peer_agrees(adapt, convolution(arguments), method, rslora=rslora, **OPTIONS)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lora_and_dora_on_a_linear_layer_are_those_of_peft(peft: ModuleType, method: str) -> None:
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=method == "dora", target_modules=["0"])
    assert_peer_agrees(peer(peft, config, lora_values), linear(), method, **OPTIONS)


@pytest.mark.parametrize("arguments", REBUILT.values(), ids=REBUILT)
def test_loha_on_a_convolution_is_that_of_peft(peft: ModuleType, arguments: dict) -> None:
    config = peft.LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["0"])
    assert_peer_agrees(peer(peft, config, loha_values), convolution(arguments), "loha", **OPTIONS)


def test_loha_on_a_linear_layer_is_that_of_peft(peft: ModuleType) -> None:
    config = peft.LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["0"])
    assert_peer_agrees(peer(peft, config, loha_values), linear(), "loha", **OPTIONS)


@pytest.mark.parametrize("options", PEFT_LOKR_OPTIONS.values(), ids=PEFT_LOKR_OPTIONS)
@pytest.mark.parametrize("arguments", REBUILT.values(), ids=REBUILT)
def test_lokr_on_a_convolution_is_that_of_peft(peft: ModuleType, arguments: dict, options: dict) -> None:
    config = lokr_config(peft, **options)
    assert_peer_agrees(peer(peft, config, lokr_values), convolution(arguments), "lokr", **options)


@pytest.mark.parametrize("options", PEFT_LOKR_OPTIONS.values(), ids=PEFT_LOKR_OPTIONS)
def test_lokr_on_a_linear_layer_is_that_of_peft(peft: ModuleType, options: dict) -> None:
    assert_peer_agrees(peer(peft, lokr_config(peft, **options), lokr_values), linear(), "lokr", **options)
