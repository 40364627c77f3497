"""LoCA: the spatial axes, where the diagonal lies, ranks by stage, sizes and rates."""

import math

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.loca import Loca
from convpeft.sites import Site

CONV = Site("conv", "conv", (16, 8, 3, 3))
GROUPED = Site("grouped", "conv", (8, 2, 3, 3), groups=4)
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)
LINEAR = Site("linear", "linear", (10, 64))
OPTIONS = {"rank": 16, "alpha": None, "hierarchical": True, "learned_scale": False}


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


@pytest.mark.parametrize("site", [CONV, LINEAR])
def test_count_is_that_of_the_paper(site: Site) -> None:
    out, inputs, positions = site.out_channels, site.shape[1], math.prod(site.kernel)
    assert size(Loca(site, rank=2)) == 2 * (out + inputs * positions) + min(out, inputs) * positions


@pytest.mark.parametrize("site", [CONV, LINEAR, Site("wide", "conv", (64, 64, 3, 3))])
def test_largest_rank_leaves_room_for_the_spatial_part(site: Site) -> None:
    largest = Loca.largest_rank(site)
    assert largest
    assert size(Loca(site, rank=1000)) <= math.prod(site.shape)
    assert size(Loca(site, rank=1000)) + site.out_channels + site.fan_in > math.prod(site.shape)


@pytest.mark.parametrize("policy", ["clamp", "error", "skip"])
def test_depthwise_layer_keeps_the_spatial_part_alone(policy: str) -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Flatten(), nn.Linear(32, 2))
    convpeft.attach(model, "loca", rank_policy=policy)
    assert convpeft.count(model).layers == {"0": 32 * 9}
    assert Loca(DEPTHWISE).up is None


@pytest.mark.parametrize(
    ("site", "diagonal"),
    [
        (Site("", "conv", (3, 4, 1, 1)), [(0, 0), (1, 1), (2, 2)]),
        (Site("", "conv", (4, 2, 1, 1)), [(0, 0), (1, 1)]),
        (GROUPED, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 1), (6, 0), (7, 1)]),
        (Site("", "conv", (6, 1, 3, 3), groups=3), [(0, 0), (2, 0), (4, 0)]),
        (Site("", "linear", (2, 3)), [(0, 0), (1, 1)]),
    ],
)
def test_spatial_part_lies_where_a_channel_meets_itself(site: Site, diagonal: list[tuple[int, int]]) -> None:
    adapter, weight = Loca(site), torch.zeros(site.shape)
    adapter.start(torch.randn(site.shape), None, None)
    nn.init.ones_(adapter.spatial)
    moved = adapter(weight, None)[0].reshape(*site.shape[:2], -1).abs().sum(2)
    assert [tuple(index) for index in moved.nonzero().tolist()] == diagonal


def test_axes_are_principal_and_orthonormal() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(16, 8, 1, 1, generator=generator)
    weight = common + 0.1 * torch.randn(CONV.shape, generator=generator)  # all positions move together
    adapter = Loca(CONV)
    adapter.start(weight, None, generator)
    assert torch.allclose(adapter.axes @ adapter.axes.T, torch.eye(9), atol=1e-6)
    assert torch.allclose(adapter.axes[0], torch.full((9,), 1 / 3), atol=0.02)


def test_axes_do_not_depend_on_the_size_of_a_position() -> None:
    weight = torch.randn(CONV.shape)
    scaled = weight.clone()
    scaled[:, :, 1, 1] = 4 * scaled[:, :, 1, 1] + 3
    axes = []
    for each in (weight, scaled):
        adapter = Loca(CONV)
        adapter.start(each, None, None)
        axes.append(adapter.axes)
    assert torch.allclose(axes[0], axes[1], atol=1e-4)


@pytest.mark.parametrize("site", [Site("", "linear", (4, 8)), Site("", "conv", (8, 8, 1, 1))])
def test_axis_of_one_position_is_one(site: Site) -> None:
    adapter = Loca(site)
    adapter.start(torch.zeros(site.shape), None, None)
    assert adapter.axes.tolist() == [[1.0]]


def test_spatial_part_learns_slowly_and_without_decay() -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(16, 16, 3)), "loca", rank=2)
    groups = convpeft.param_groups(model, lr=1.0, weight_decay=0.5)
    found = {(group["lr"], group["weight_decay"]): sum(p.numel() for p in group["params"]) for group in groups}
    assert found == {(1.0, 0.5): 2 * (16 + 144), (0.1, 0.0): 16 * 9}


def stages(*channels: int) -> list[Site]:
    return [Site(f"layer{n}.conv", "conv", (c, c, 3, 3), stage=n) for n, c in enumerate(channels, 1)]


@pytest.mark.parametrize(("rank", "expected"), [(16, [4, 8, 17, 34]), (4, [1, 2, 4, 8]), (1, [1, 1, 1, 2])])
def test_rank_is_shared_out_by_the_channels_of_the_stages(rank: int, expected: list[int]) -> None:
    sites = stages(256, 512, 1024, 2048)
    settled = Loca.settle(OPTIONS | {"rank": rank}, sites, sites)
    assert [options["rank"] for options in settled] == expected


def test_every_layer_of_a_stage_has_its_rank_and_the_others_keep_theirs() -> None:
    narrow = Site("layer2.reduce", "conv", (8, 64, 1, 1), stage=2)
    stem = Site("conv1", "conv", (8, 3, 7, 7))
    settled = Loca.settle(OPTIONS, [stem, *stages(16, 48), narrow], [])
    assert [options["rank"] for options in settled] == [16, 8, 24, 24]


@pytest.mark.parametrize("changed", [{"hierarchical": False}, {}])
def test_rank_is_the_same_everywhere_if_asked_or_without_stages(changed: dict) -> None:
    sites = stages(16, 48) if changed else [CONV, LINEAR]
    assert Loca.settle(OPTIONS | changed, sites, sites) == [OPTIONS | changed] * 2


def test_scale_uses_the_rank_asked_for_at_the_layer() -> None:
    assert Loca(CONV).scale == 1.0
    model = nn.Sequential()
    for number, channels in enumerate((8, 24)):
        model.add_module(f"layer{number}", nn.Conv2d(channels, channels, 3))
    convpeft.attach(model, "loca", rank=4, alpha=4.0)
    assert [part.scale for part in model.modules() if isinstance(part, Loca)] == [4 / 2, 4 / 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"'loca': rank=0 is out of range, it must be above 0"),
        ({"rank": -1, "hierarchical": False}, r"rank=-1 is out of range"),
        ({"alpha": 0.0}, r"alpha=0.0 is out of range"),
    ],
)
def test_option_out_of_range_is_refused(options: dict, message: str) -> None:
    model = nn.ModuleDict({f"layer{number}": nn.Conv2d(3, 8, 3) for number in range(2)})
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.attach(model, "loca", **options)
