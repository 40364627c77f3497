"""loralib's state dicts are read and written; outputs are those of the real package."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.interop import read_loralib, write_loralib
from interop.networks_of_peers import assert_equal_outputs, perturbed, twin

X = torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def loralib() -> ModuleType:
    return pytest.importorskip("loralib")


def network(grouped: bool = False) -> nn.Sequential:
    """Every geometry that loralib is right on."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, stride=2, padding=2, dilation=2, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=1, bias=False, groups=4 if grouped else 1),
        nn.Conv2d(12, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def theirs(loralib: ModuleType, plain: nn.Sequential, alpha: int) -> nn.Module:
    """The same network of loralib's layers, rank 2."""
    layers: list[nn.Module] = []
    for layer in twin(plain):
        new: Any = layer
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size[0])
            new = loralib.Conv2d(*sizes, groups=layer.groups, r=2, lora_alpha=alpha)
            new.conv = layer
        elif isinstance(layer, nn.Linear):
            new = loralib.Linear(layer.in_features, layer.out_features, r=2, lora_alpha=alpha)
            new.weight, new.bias = layer.weight, layer.bias
        layers.append(new)
    return nn.Sequential(*layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grouped", [False, True])
def test_state_of_loralib_is_read(loralib: ModuleType, tmp_path: Path, grouped: bool) -> None:
    plain = network(grouped)
    peer = perturbed(theirs(loralib, plain, 5), lambda name: "lora_" in name)
    torch.save(loralib.lora_state_dict(peer), tmp_path / "x.pt")
    ours = read_loralib(tmp_path / "x.pt", twin(plain), alpha=5)
    assert_equal_outputs(ours, peer.eval(), plain, X)
    assert_equal_outputs(convpeft.load(twin(plain), convpeft.save(ours, tmp_path / "ours")), ours, None, X)


@pytest.mark.parametrize("options", [{"method": "lora"}, {"method": "lora-c", "layout": "loralib", "setting": "rk"}])
def test_adapter_is_written_for_loralib(loralib: ModuleType, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = network(grouped=options["method"] == "lora-c")
    ours = convpeft.attach(twin(plain), include=["conv", "linear"], rank=2, alpha=3.0, **options)
    file = write_loralib(randomise(ours), tmp_path / "x.pt", alpha=5)
    peer = theirs(loralib, plain, 5)
    found = peer.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert not found.unexpected_keys
    assert_equal_outputs(peer.eval(), ours, plain, X)


def saved(place: Path, **tensors: Any) -> Path:
    state = {"6.lora_A": torch.ones(2, 24), "6.lora_B": torch.ones(5, 2)}
    torch.save(state | {key.replace("__", "."): value for key, value in tensors.items()}, place / "x.pt")
    return place / "x.pt"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"6__bias": torch.ones(5)}, "is neither lora_A nor lora_B"),
        ({"1__lora_A": torch.ones(5)}, "is no linear layer or convolution with a square 2-d kernel"),
        ({"6__lora_A": torch.ones(2, 23)}, "do not make its weight"),
    ],
)
def test_tensor_that_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(convpeft.AdapterFileError, match=message):
        read_loralib(saved(tmp_path, **tensors), network())


def test_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(convpeft.ModelError, match="holds NaN or infinity"):
        read_loralib(saved(tmp_path, **{"6__lora_A": torch.full((2, 24), torch.nan)}), network())


def test_what_has_no_form_in_loralib_is_refused(tmp_path: Path) -> None:
    with pytest.raises(convpeft.ModelError, match="method 'dora' has no form in loralib, which knows LoRA"):
        write_loralib(convpeft.attach(network(), "dora"), tmp_path / "x.pt")
    with pytest.raises(convpeft.ModelError, match="lora on a grouped convolution has no form in loralib"):
        write_loralib(convpeft.attach(network(grouped=True), "lora", rank=2), tmp_path / "x.pt")
    odd = convpeft.attach(network(), "lora-c", layout="loralib", setting="rk", rank=64)
    with pytest.raises(convpeft.ModelError, match="is no rank in loralib, where it is a multiple of"):
        write_loralib(odd, tmp_path / "x.pt")
    with pytest.raises(convpeft.OptionError, match="alpha=0 is out of range"):
        write_loralib(odd, tmp_path / "x.pt", alpha=0)
