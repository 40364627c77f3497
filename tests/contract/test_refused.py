"""What each method refuses: the committed list of (method, kind) pairs, each with its reason and its message."""

import re

import pytest
import torch
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import METHODS
from convpeft.adapters import method_class

pytestmark = pytest.mark.promise("C02")

NORM = "a norm's weight is no map from inputs to outputs"
PARAMETER = "a loose parameter is no map from inputs to outputs"
BLOCK = "a block has no weight of its own"
MAPS = {"norm": NORM, "parameter": PARAMETER, "block": BLOCK}  # of a method that takes convolutions and linear layers
# Every method that is not listed takes these two and refuses the rest.
REFUSED: dict[str, dict[str, str]] = dict.fromkeys(METHODS, MAPS) | {
    "bitfit": {"parameter": PARAMETER, "block": BLOCK},
    "ssf": {"parameter": PARAMETER, "block": BLOCK},
    "full": {"norm": "norms are trained by the norm policy 'train'", "block": BLOCK},
    "norm-tuning": {
        "conv": "it has no use for a convolution",
        "linear": "it has no use for a linear layer",
        "parameter": PARAMETER,
        "block": BLOCK,
    },
    "chapter": MAPS | {"linear": "a linear layer has no axis to convolve along"},
    "colora": MAPS | {"linear": "a linear layer has no spatial kernel"},
    "residual-parallel": MAPS | {"linear": "a 1x1 convolution beside it is as large as the layer"},
    "residual-serial": MAPS | {"linear": "a 1x1 convolution after it is as large as the layer"},
    "conv-adapter": MAPS
    | {
        "linear": "a linear layer has no spatial axes",
        "block": "that needs scheme='residual-parallel' or 'residual-sequential'",
    },
    "lite-residual": {"linear": "a linear layer has no spatial axes", "norm": NORM, "parameter": PARAMETER},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain.view(-1, 1, 1) * self.second(self.norm(self.conv(x)))


def network() -> nn.Module:
    return nn.Sequential(Block(), Block(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 2))


PLACES = {"conv": "0.conv", "linear": "4", "norm": "0.norm", "parameter": "0.gain", "block": "0"}


def test_list_is_what_the_methods_say() -> None:
    found = {
        method: {kind: cls.refused[kind] for kind in PLACES if kind not in cls.kinds}
        for method in METHODS
        for cls in [method_class(method)]
    }
    assert found == REFUSED


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind != "block"])
@pytest.mark.parametrize("method", METHODS)
def test_layer_that_is_refused_is_named_with_the_reason(method: str, kind: str) -> None:
    model = network()
    place = PLACES[kind]
    if kind not in REFUSED[method]:
        convpeft.attach(model, method, include=[place], exclude=[])
        return
    with pytest.raises(convpeft.OptionError) as refusal:
        convpeft.attach(model, method, include=[place])
    message = str(refusal.value)
    assert REFUSED[method][kind] in message
    assert re.match(rf"layer '{place.removesuffix('.gain')}' \(.*: method '{method}' cannot adapt it", message)
    assert "\n" not in message
    assert type(model[0].conv) is nn.Conv2d


@pytest.mark.parametrize("method", [method for method in METHODS if "block" in REFUSED[method]])
def test_block_that_is_refused_is_named_with_the_reason(method: str) -> None:
    with pytest.raises(convpeft.OptionError, match=re.escape(REFUSED[method]["block"])):
        convpeft.attach(network(), method, include="block")


def test_pattern_that_catches_other_kinds_by_the_way_is_no_mistake() -> None:
    model = convpeft.attach(network(), "lora", include=["0"])
    assert set(convpeft.count(model).layers) == {"0.conv", "0.second"}
