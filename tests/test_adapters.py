"""The registry, a method's record, and what an Adapter promises."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft import adapters


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test registers are gone after it."""
    monkeypatch.setattr(adapters, "METHODS", dict(adapters.load_methods()))


def test_every_file_of_methods_is_registered() -> None:
    assert set(convpeft.list_methods()) >= {"lora", "bitfit", "norm-tuning", "full", "probe"}


def test_methods_are_sorted() -> None:
    assert list(convpeft.list_methods()) == sorted(convpeft.list_methods())


def test_record_of_lora() -> None:
    info = convpeft.method_info("lora")
    assert info.summary == "Add a low-rank matrix, reshaped to the kernel, to each weight."
    assert [(option.name, option.type, option.default) for option in info.options] == [
        ("rank", "int", 8),
        ("alpha", "float or None", None),
        ("rslora", "bool", False),
        ("plus_ratio", "float", 1.0),
        ("init", "one of 'zero', 'pissa'", "zero"),
        ("learned_scale", "bool", False),
    ]
    assert (info.mergeable, info.norm, info.default_sites) == ("always", "frozen", ("conv", "linear"))
    assert "2106.09685" in info.paper


@pytest.mark.parametrize("method", convpeft.list_methods())
def test_record_is_complete(method: str) -> None:
    info = convpeft.method_info(method)
    assert info.summary.endswith(".")
    assert info.paper
    assert info.learning_rate > 0
    assert all(option.description.endswith(".") for option in info.options)


def test_record_of_an_unknown_method_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match=r"method='bitift' does not exist\. Did you mean 'bitfit'\?"):
        convpeft.method_info("bitift")


def test_literal_options_are_checked_and_described() -> None:
    class Choosy(adapters.Adapter, name="choosy"):
        def __init__(self, site: convpeft.Site, *, init: Literal["zero", "paper"] = "zero") -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return weight + self.gain, bias

    assert convpeft.method_info("choosy").options[0].type == "one of 'zero', 'paper'"
    with pytest.raises(convpeft.OptionError, match="init='papr' is not one of 'zero', 'paper'"):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "choosy", init="papr")
    convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "choosy", init="paper")


def test_adapter_that_changes_the_shape_is_refused() -> None:
    class Growing(adapters.Adapter, name="growing"):
        def __init__(self, site: convpeft.Site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return torch.cat([weight, weight + self.gain]), bias

    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(convpeft.ModelError, match=r"'growing' maps layer '0'.*shape \(16, 3, 3, 3\).*is a Branch"):
        convpeft.attach(model, "growing")
    assert type(model[0]) is nn.Conv2d


def test_adapter_sees_transposed_weights_as_out_in_kernel() -> None:
    seen: list[tuple[int, ...]] = []

    class Looking(adapters.Adapter, name="looking"):
        def __init__(self, site: convpeft.Site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(site.out_channels))

        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            seen.append(tuple(weight.shape))
            return weight * (1 + self.gain.reshape(-1, 1, 1, 1)), bias

    layer = convpeft.attach(nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), "looking")
    with torch.no_grad():
        convpeft.trainable_parameters(layer)[0][3] = -1.0  # the last output channel is put out
    output = layer(torch.randn(1, 6, 5, 5))
    assert set(seen) == {(4, 3, 3, 3)}
    assert torch.count_nonzero(output[:, 3]) == 0
    assert torch.count_nonzero(output[:, :3]) == output[:, :3].numel()


def test_adapter_sees_float32_in_a_half_precision_layer() -> None:
    seen: list[torch.dtype] = []

    class Looking(adapters.Adapter, name="looking"):
        def __init__(self, site: convpeft.Site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            seen.append(weight.dtype)
            return weight + self.gain, bias

    layer = convpeft.attach(nn.Conv2d(3, 8, 3).bfloat16(), "looking")
    assert layer.weight.dtype == torch.bfloat16
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_adapter_keeps_float32_when_the_model_is_cast(dtype: torch.dtype) -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "lora", include=["conv"])
    before = [parameter.detach().clone() for parameter in convpeft.trainable_parameters(model)]
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    after = convpeft.trainable_parameters(model)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(before, after, strict=True))
