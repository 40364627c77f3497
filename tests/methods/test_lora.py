"""LoRA: rank, scale, start and size."""

import math

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.lora import Lora
from convpeft.sites import Site

CONV = Site("conv", "conv", (16, 8, 3, 3))
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1.0),
        ({"rank": 2}, 1.0),
        ({"rank": 4, "alpha": 8.0}, 2.0),
        ({"rank": 4, "alpha": 8.0, "rslora": True}, 4.0),
        ({"rank": 64, "alpha": 32.0}, 0.5),  # clamped below 64, the scale is not
    ],
)
def test_scale_uses_the_rank_that_was_asked_for(options: dict, scale: float) -> None:
    assert Lora(CONV, **options).scale == pytest.approx(scale)


@pytest.mark.parametrize("site", [CONV, DEPTHWISE, Site("linear", "linear", (10, 64))])
def test_largest_rank_is_the_last_that_is_no_larger_than_the_layer(site: Site) -> None:
    largest = Lora.largest_rank(site)
    size = math.prod(site.shape)
    assert largest * (site.out_channels + site.fan_in) <= size
    assert (largest + 1) * (site.out_channels + site.fan_in) > size


def test_rank_of_a_depthwise_layer_is_clamped() -> None:
    adapter = Lora(DEPTHWISE, rank=16)
    assert (adapter.up.shape, adapter.down.shape) == ((32, 7), (7, 9))


def test_start_is_zero_on_the_output_side_alone() -> None:
    adapter = Lora(CONV, rank=4)
    adapter.start(torch.zeros(CONV.shape), None, torch.Generator().manual_seed(0))
    assert torch.count_nonzero(adapter.up) == 0
    assert torch.count_nonzero(adapter.down) == adapter.down.numel()
    assert adapter.down.abs().max() <= 1 / math.sqrt(CONV.fan_in)


def test_start_repeats_with_its_generator() -> None:
    starts = []
    for _ in range(2):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        convpeft.attach(model, "lora", generator=torch.Generator().manual_seed(3))
        starts.append(dict(model.named_parameters())["0.convpeft.default:lora.down"])
    assert torch.equal(*starts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"'lora': rank=0 is out of range, it must be above 0"),
        ({"rank": -3}, r"rank=-3 is out of range"),
        ({"alpha": 0.0}, r"alpha=0.0 is out of range"),
        ({"alpha": math.nan}, r"alpha=nan is out of range"),
        ({"alpha": math.inf}, r"alpha=inf is out of range"),
    ],
)
def test_option_out_of_range_is_refused(options: dict, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.attach(model, "lora", **options)
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight.requires_grad


def test_delta_has_the_rank() -> None:
    layer = nn.Conv2d(8, 16, 3, bias=False)
    before = layer.weight.detach().clone()
    convpeft.attach(layer, "lora", rank=3, include=["conv"])
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(layer):
            parameter.normal_()
    assert torch.linalg.matrix_rank((layer.weight - before).flatten(1)) == 3
