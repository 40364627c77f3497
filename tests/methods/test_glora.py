"""GLoRA: the five supports, their size, their start and what each does."""

import math

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.methods.glora import Glora
from convpeft.sites import Site

CONV = Site("conv", "conv", (16, 8, 3, 3), bias=True)
LINEAR = Site("linear", "linear", (10, 64), bias=True)
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)
NONE = dict.fromkeys("abcde", "none")


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


def filled(site: Site, value: float = 0.5, **forms: str) -> Glora:
    adapter = Glora(site, **NONE | forms)
    for parameter in adapter.parameters():
        nn.init.constant_(parameter, value)
    return adapter


@pytest.mark.parametrize("site", [CONV, LINEAR])
def test_count_is_that_of_the_paper(site: Site) -> None:
    out, inputs = site.out_channels, site.shape[1]
    assert size(Glora(site, rank=2)) == 2 * 2 * (out + site.fan_in) + 2 * (inputs + 1) + 2 * out


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ({"a": "vector", "b": "scalar", "c": "vector", "d": "scalar", "e": "vector"}, 16 + 1 + 8 + 1 + 16),
        ({"e": "scalar"}, 1),
        ({}, 0),
    ],
)
def test_count_without_low_rank_supports(forms: dict, expected: int) -> None:
    assert size(Glora(CONV, **NONE | forms)) == expected
    assert Glora.largest_rank(CONV, **NONE | forms) is None


@pytest.mark.parametrize("site", [CONV, LINEAR, DEPTHWISE])
@pytest.mark.parametrize("forms", [{}, {"a": "vector", "e": "scalar"}, {"a": "none", "b": "none", "d": "none"}])
def test_largest_rank_is_the_last_that_is_no_larger_than_the_layer(site: Site, forms: dict) -> None:
    largest = Glora.largest_rank(site, **forms)
    adapter = Glora(site, rank=10**6, **forms)
    low_rank = sum(p.numel() for name, p in adapter.named_parameters() if name.endswith(("_up", "_down")))
    assert largest >= 1
    assert size(adapter) <= math.prod(site.shape) < size(adapter) + low_rank // largest


def test_start_zeroes_one_factor_of_each_product() -> None:
    adapter = Glora(CONV, rank=2)
    adapter.start(torch.zeros(CONV.shape), torch.zeros(16), torch.Generator().manual_seed(0))
    zero = {name for name, parameter in adapter.named_parameters() if torch.count_nonzero(parameter) == 0}
    assert zero == {"a_up", "b_up", "c_up", "d", "e"}
    assert adapter.a_down.abs().max() <= math.sqrt(6 / (2 + 72))


def test_every_number_moves_within_two_steps() -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(72, 2)), "glora", rank=1)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}
    optimizer = torch.optim.SGD(convpeft.trainable_parameters(model), lr=0.1)
    for _ in range(2):
        model(torch.randn(3, 2, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(before) == 8
    for name, tensor in model.named_parameters():
        assert name not in before or (tensor != before[name]).all(), name


def test_supports_on_the_bias_need_one_or_bring_one() -> None:
    site = Site("conv", "conv", (4, 2, 3, 3))
    weight = torch.ones(site.shape)
    assert size(Glora(site, **NONE | {"d": "vector"})) == 0
    assert filled(site, a="scalar")(weight, None)[1] is None
    assert torch.equal(filled(site, e="scalar")(weight, None)[1], torch.full((4,), 0.5))


def test_constant_input_is_one_value_a_channel_also_in_groups() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    site = Site("", "conv", (6, 2, 3, 3), groups=2, bias=True)
    adapter = filled(site, c="vector")
    prompt = torch.tensor([1.0, -2.0, 0.25, 3.0])
    adapter.c.data[:, 0] = prompt
    x = torch.randn(1, 4, 5, 5)
    expected = layer(x + prompt.view(1, -1, 1, 1))
    new_weight, new_bias = adapter(layer.weight, layer.bias)
    assert torch.allclose(nn.functional.conv2d(x, new_weight, new_bias, groups=2), expected, atol=1e-5)


def test_scale_uses_the_rank_that_was_asked_for() -> None:
    assert Glora(CONV, rank=64, alpha=32.0).scale == 0.5


def test_layer_without_any_support_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(convpeft.OptionError, match="finds no layer to adapt"):
        convpeft.attach(model, "glora", **NONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"'glora': rank=0 is out of range, it must be above 0"),
        ({"alpha": -1.0}, r"alpha=-1.0 is out of range"),
        ({"c": "scalar"}, r"c='scalar' is not one of 'lora', 'vector', 'none'"),
    ],
)
def test_option_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "glora", **options)


def test_factors_multiply_weight_and_bias() -> None:
    weight, bias = torch.randn(CONV.shape), torch.randn(16)
    new: tuple[Tensor, Tensor | None] = filled(CONV, a="vector", d="scalar")(weight, bias)
    assert torch.allclose(new[0], 1.5 * weight)
    assert torch.allclose(new[1], 1.5 * bias)
