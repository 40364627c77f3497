"""TSA: centre tap, channel gains, the paper's start, and the map before the classifier."""

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.tsa import Tsa
from convpeft.sites import Site

GROUPED = Site("grouped", "conv", (8, 2, 3, 3), groups=4)


def network() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 4)).eval()


def fill(model: nn.Module, **values: float) -> None:
    for name, parameter in model.named_parameters():
        for end, value in values.items():
            if name.endswith(f".{end}"):
                nn.init.constant_(parameter, value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"0": 8 * 3, "1": 8, "5": 6 * 6}),
        ({"form": "channel"}, {"0": 3, "1": 8, "5": 36}),
        ({"align": False}, {"0": 24, "1": 8}),
        ({"learned_scale": True}, {"0": 25, "1": 9, "5": 36}),
    ],
)
def test_count_is_that_of_the_paper(options: dict, expected: dict[str, int]) -> None:
    assert convpeft.count(convpeft.attach(network(), "tsa", **options)).layers == expected


@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (128, 64, 3, 3)])
def test_count_of_a_convolution(shape: tuple[int, ...]) -> None:
    site = Site("", "conv", shape)
    assert [p.numel() for p in Tsa(site).parameters()] == [shape[0] * shape[1]]
    assert [p.numel() for p in Tsa(site, form="channel").parameters()] == [64]


@pytest.mark.parametrize("stride", [1, 2])
def test_matrix_is_a_1x1_convolution_of_the_same_stride(stride: int) -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, stride=stride)
    x = torch.randn(2, 4, 9, 9)
    before = layer(x)
    convpeft.attach(layer, "tsa", include=["conv"])
    beside = torch.randn(6, 4)
    with torch.no_grad():
        convpeft.trainable_parameters(layer)[0].copy_(beside)
    expected = before + nn.functional.conv2d(x, beside.view(6, 4, 1, 1), stride=stride)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_channel_form_adds_the_input_itself() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 9, 9)
    before = layer(x)
    convpeft.attach(layer, "tsa", include=["conv"], form="channel")
    gains = torch.randn(4)
    with torch.no_grad():
        convpeft.trainable_parameters(layer)[0].copy_(gains)
    assert torch.allclose(layer(x), before + gains.view(-1, 1, 1) * x, atol=1e-5)


@pytest.mark.parametrize("form", ["matrix", "channel"])
@pytest.mark.parametrize("site", [GROUPED, Site("", "conv", (6, 4, 5)), Site("", "linear", (3, 5))])
def test_start_of_the_paper_is_a_small_identity_in_each_group(form: str, site: Site) -> None:
    adapter, weight = Tsa(site, form=form, init="paper"), torch.zeros(site.shape)
    adapter.start(weight, None, None)
    delta = adapter(weight, None)[0].reshape(*site.shape[:2], -1)
    outputs, inputs = site.out_channels // site.groups, site.shape[1]
    assert torch.equal(delta.sum(2), 1e-4 * torch.eye(outputs, inputs).repeat(site.groups, 1))
    assert torch.count_nonzero(delta) == site.groups * min(outputs, inputs)


def test_map_before_the_classifier_acts_on_the_features() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    features = model[:5](x)
    expected = model[5](features @ (torch.eye(6) + 0.3).T)
    convpeft.attach(model, "tsa")
    fill(model, offset=0.3)
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_map_before_the_classifier_is_not_its_transpose() -> None:
    model, x, offset = network(), torch.randn(2, 3, 8, 8), torch.randn(6, 6)
    expected = model[5](model[:5](x) @ (torch.eye(6) + offset).T)
    convpeft.attach(model, "tsa")
    with torch.no_grad():
        dict(model.named_parameters())["5.convpeft.default:tsa.offset"].copy_(offset)
    assert torch.allclose(model(x), expected, atol=1e-4)


def test_map_before_a_fresh_classifier_acts_on_its_weight() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    convpeft.attach(model, "tsa", num_classes=7)
    fresh = model[5].weight.detach()
    fill(model, offset=0.5)
    assert model(x).shape == (2, 7)
    assert torch.allclose(model[5].weight, fresh @ (torch.eye(6) + 0.5), atol=1e-6)


def test_map_before_a_1x1_convolution_as_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    weight = model[1].weight.detach().clone()
    convpeft.attach(model, "tsa")
    fill(model, offset=0.5)
    assert torch.allclose(model[1].weight.flatten(1), weight.flatten(1) @ (torch.eye(6) + 0.5), atol=1e-6)


@pytest.mark.parametrize(("options", "ratio"), [({"align_rate": 2.0}, 2), ({"align_rate": 10.0}, 10)])
def test_map_before_the_classifier_has_its_own_rate(options: dict, ratio: float) -> None:
    groups = convpeft.param_groups(convpeft.attach(network(), "tsa", **options), lr=0.5)
    assert {group["lr"]: sum(p.numel() for p in group["params"]) for group in groups} == {0.5: 32, 0.5 * ratio: 36}


def test_rate_out_of_range_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match=r"'tsa': align_rate=0.0 is out of range, it must be above 0"):
        convpeft.attach(network(), "tsa", align_rate=0.0)


def test_is_not_merged_out_of_order() -> None:
    model = convpeft.attach(network(), "lora", name="first")
    convpeft.attach(model, "tsa", name="second")
    with pytest.raises(convpeft.OptionError, match="do not come first"):
        convpeft.merge(model, ["second"])


def test_head_alone_is_refused_without_the_map() -> None:
    with pytest.raises(convpeft.OptionError, match="'tsa' finds no layer to adapt"):
        convpeft.attach(network(), "tsa", include=["head"], align=False)
