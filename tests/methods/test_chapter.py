"""CHAPTER: the whole grid of arrangement and matching against torch's own one-dimensional convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from convpeft.adapters import Adapter, Branch
from convpeft.methods.chapter import Chapter
from convpeft.sites import Site

CONV = Site("conv", "conv", (12, 8, 3))
SQUARE = Site("square", "conv", (16, 16, 3, 3))
DEPTHWISE = Site("depthwise", "conv", (10, 1, 5), groups=10)
SERIAL = {"arrangement": "serial", "learned_scale": False}


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


def adapted(layer: nn.Module, x: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Output of the layer, output with a drawn adapter, and that adapter."""
    before = layer(x)
    convpeft.attach(layer, "chapter", include=["conv"], **options)
    (adapter,) = (p for name, p in layer.named_parameters() if name.endswith("adapter"))
    nn.init.normal_(adapter, generator=torch.Generator().manual_seed(0))
    return before, layer(x), adapter.detach()


@pytest.mark.parametrize(
    ("site", "matching", "expected"),
    [
        (CONV, "group", 12 * 2 * 3),  # gcd(12, 8) = 4 slices of 2 inputs
        (SQUARE, "group", 16 * 1 * 3),
        (DEPTHWISE, "group", 10 * 3),
        (CONV, "copy", 8 * 3),
        (SQUARE, "copy", 16 * 3),
        (Site("narrow", "conv", (4, 12, 3)), "copy", 4 * 3),  # the filters that are cut off are not stored
        (DEPTHWISE, "copy", 10 * 3),
    ],
)
def test_size_of_the_parallel_form(site: Site, matching: str, expected: int) -> None:
    assert size(Chapter(site, matching=matching)) == expected
    assert size(Chapter(site, matching=matching, learned_scale=True)) == expected + 1


@pytest.mark.parametrize(("matching", "expected"), [("group", 12 * 5), ("copy", 5)])
def test_size_of_the_serial_form(matching: str, expected: int) -> None:
    cls = Chapter.form(arrangement="serial", matching=matching, kernel=5)
    assert size(cls(CONV, matching=matching, kernel=5, **SERIAL)) == expected


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ({}, Adapter),
        ({"arrangement": "parallel", "kernel": 9}, Adapter),
        ({"arrangement": "serial", "kernel": 1}, Adapter),
        ({"arrangement": "serial"}, Branch),
    ],
)
def test_only_several_taps_after_a_layer_are_no_map_of_weights(options: dict, base: type) -> None:
    assert issubclass(Chapter.form(**options), base)
    assert (Chapter.form(**options).mergeable == "always") == (base is Adapter)
    assert Chapter.form(**options).method_name == "chapter"


@pytest.mark.parametrize("stride", [1, 2])
def test_group_is_a_group_convolution_of_the_input(stride: int) -> None:
    x = torch.randn(2, 8, 11)
    before, after, adapter = adapted(nn.Conv1d(8, 12, 5, stride=stride, padding=2), x)
    torch.testing.assert_close(after, before + F.conv1d(x, adapter, stride=stride, padding=1, groups=4))


@pytest.mark.parametrize("outputs", [8, 20, 5])
def test_copy_concatenates_one_filter_a_channel_until_it_fits(outputs: int) -> None:
    x = torch.randn(2, 8, 11)
    before, after, adapter = adapted(nn.Conv1d(8, outputs, 3, padding=1), x, matching="copy")
    filters = F.pad(adapter, (0, 0, 0, 0, 0, 8 - len(adapter)))
    one = F.conv1d(x, filters, padding=1, groups=8)
    torch.testing.assert_close(after, before + torch.cat([one] * 3, 1)[:, :outputs])


def test_channels_are_matched_inside_each_group_of_the_layer() -> None:
    x = torch.randn(2, 6, 9)
    before, after, adapter = adapted(nn.Conv1d(6, 12, 3, padding=1, groups=2), x, matching="copy")
    one = F.conv1d(x, adapter, padding=1, groups=6)
    torch.testing.assert_close(after, before + torch.cat([one[:, :3], one[:, :3], one[:, 3:], one[:, 3:]], 1))


def test_two_dimensional_layers_are_filtered_along_the_last_axis() -> None:
    x = torch.randn(2, 4, 6, 7)
    before, after, adapter = adapted(nn.Conv2d(4, 4, 3, padding=1), x)
    torch.testing.assert_close(after, before + F.conv2d(x, adapter[:, :, None], padding=(0, 1), groups=4))


@pytest.mark.parametrize(("matching", "kernel"), [("group", 3), ("copy", 3), ("group", 4), ("copy", 1)])
def test_serial_filters_the_output(matching: str, kernel: int) -> None:
    x = torch.randn(2, 3, 5, 8)
    layer = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1)
    before, after, adapter = adapted(layer, x, arrangement="serial", matching=matching, kernel=kernel)
    padded = F.pad(before, ((kernel - 1) // 2, kernel // 2))
    filters = adapter.expand(6, kernel)[:, None, None]
    torch.testing.assert_close(after, before + F.conv2d(padded, filters, groups=6))


def test_a_larger_kernel_is_cut_to_that_of_the_layer_in_parallel_only() -> None:
    assert Chapter(CONV, kernel=99).adapter.shape[-1] == 3
    assert Chapter(Site("point", "conv", (4, 4, 1, 1))).adapter.shape[-1] == 1
    cls = Chapter.form(arrangement="serial", kernel=5)
    assert cls(CONV, matching="group", kernel=5, **SERIAL).adapter.shape[-1] == 5


@pytest.mark.parametrize("arrangement", ["parallel", "serial"])
def test_kernel_out_of_range_is_refused(arrangement: str) -> None:
    with pytest.raises(convpeft.OptionError, match="'chapter': kernel=0 is out of range, it must be above 0"):
        convpeft.attach(nn.Conv1d(2, 2, 3), "chapter", include=["conv"], kernel=0, arrangement=arrangement)


def test_linear_layer_is_refused_with_its_reason() -> None:
    with pytest.raises(convpeft.OptionError, match="a linear layer has no axis to convolve along"):
        convpeft.attach(nn.Sequential(nn.Linear(3, 3)), "chapter", include=["0"])
