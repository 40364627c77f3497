"""LoRA-Edge: what is trained, ranks of the train, frozen cores of any weight."""

import math

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.methods.tt import TensorTrain
from convpeft.sites import Site

CONV = Site("conv", "conv", (32, 16, 3, 3))
LINEAR = Site("linear", "linear", (40, 96))
POINTWISE = Site("pointwise", "conv", (40, 96, 1, 1))
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)
AUDIO = Site("audio", "conv", (32, 1, 9), groups=32)
VIDEO = Site("video", "conv", (12, 6, 3, 1, 5))
SITES = pytest.mark.parametrize("site", [CONV, LINEAR, POINTWISE, DEPTHWISE, AUDIO, VIDEO], ids=lambda site: site.path)
ORTHONORMAL = 1e-5  # rows of up to a hundred numbers, stored in float32


def started(site: Site, weight: Tensor, *, seed: int = 0, **options: int) -> TensorTrain:
    adapter = TensorTrain(site, **options)
    adapter.start(weight, None, torch.Generator().manual_seed(seed))
    return adapter


def random_weight(site: Site, seed: int = 0) -> Tensor:
    return torch.randn(site.shape, generator=torch.Generator().manual_seed(seed))


def directions(adapter: TensorTrain) -> Tensor:
    """The frozen cores multiplied out, (first rank, n)."""
    rank = adapter.up.shape[1]
    with torch.no_grad():
        adapter.up.copy_(torch.eye(len(adapter.up), rank))
        return adapter(torch.zeros(adapter.site.shape), None)[0].flatten(1)[:rank]


@pytest.mark.parametrize(("site", "rank"), [(CONV, 8), (LINEAR, 5), (VIDEO, 4)])
def test_trained_numbers_are_outputs_times_rank(site: Site, rank: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2))
    assert sum(parameter.numel() for parameter in TensorTrain(site, rank=rank).parameters()) == site.out_channels * rank
    assert convpeft.count(convpeft.attach(model, "tt", rank=2)).trainable == 8 * 2


def test_ranks_are_bounded_by_the_sizes_on_either_side() -> None:
    shapes = [tuple(core.shape) for core in TensorTrain(CONV, rank=5).buffers()]
    assert shapes == [(5, 16, 5), (5, 3, 3), (3, 3, 1)]
    shapes = [tuple(core.shape) for core in TensorTrain(Site("few", "conv", (2, 1, 9, 9)), rank=4).buffers()]
    assert shapes == [(2, 1, 2), (2, 9, 4), (4, 9, 1)]


def test_axes_of_size_one_have_no_core() -> None:
    assert [name for name, _ in TensorTrain(POINTWISE).named_buffers()] == ["core_in"]
    assert [name for name, _ in TensorTrain(VIDEO).named_buffers()] == ["core_in", "core_axis_1", "core_axis_3"]


@SITES
def test_largest_rank_is_the_last_at_which_all_cores_are_no_larger_than_the_layer(site: Site) -> None:
    largest = TensorTrain.largest_rank(site)
    adapter = TensorTrain(site, rank=10**6)
    size = sum(tensor.numel() for tensor in adapter.state_dict().values())
    assert max(core.shape[0] for core in adapter.buffers()) == largest
    assert size <= math.prod(site.shape)
    assert size > math.prod(site.shape) / 2  # one more of everything would not fit


@SITES
def test_frozen_cores_are_orthonormal(site: Site) -> None:
    rows = directions(started(site, random_weight(site)))
    assert (rows @ rows.T - torch.eye(len(rows))).abs().max() < ORTHONORMAL


@SITES
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e15])
def test_frozen_cores_of_a_weight_of_low_rank_span_it(site: Site, scale: float) -> None:
    factors = TensorTrain(site, rank=2)
    with torch.no_grad():
        for number, tensor in enumerate(factors.state_dict().values()):
            tensor.normal_(generator=torch.Generator().manual_seed(number))
        weight = factors(torch.zeros(site.shape), None)[0]  # a train of rank 2
    rows = directions(started(site, weight * scale, rank=2))
    flat = weight.flatten(1)
    assert (flat @ rows.T @ rows - flat).abs().max() < ORTHONORMAL * flat.abs().max()


def test_directions_of_a_linear_layer_are_its_singular_vectors() -> None:
    weight = random_weight(LINEAR)
    rows = directions(started(LINEAR, weight, rank=3))
    expected = torch.linalg.svd(weight).Vh[:3]
    assert ((rows @ expected.T).abs() - torch.eye(3)).abs().max() < 1e-4


@SITES
@pytest.mark.parametrize("kind", ["zero", "one output", "equal outputs", "constant"])
def test_weight_without_enough_directions_gets_orthonormal_ones(site: Site, kind: str) -> None:
    weight = torch.zeros(site.shape)
    if kind == "one output":
        weight[0] = random_weight(site)[0]
    elif kind == "equal outputs":
        weight[:] = random_weight(site)[0]
    elif kind == "constant":
        weight.fill_(0.1)
    rows = directions(started(site, weight))
    assert (rows @ rows.T - torch.eye(len(rows))).abs().max() < ORTHONORMAL


def test_completing_directions_come_from_the_generator() -> None:
    first, again, other = (started(CONV, torch.zeros(CONV.shape), seed=seed).core_in for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradient_reaches_the_output_core_alone() -> None:
    adapter = started(CONV, random_weight(CONV))
    assert torch.count_nonzero(adapter.up) == 0
    adapter(random_weight(CONV), None)[0].square().sum().backward()
    assert torch.count_nonzero(adapter.up.grad) == adapter.up.numel()
    assert [name for name, _ in adapter.named_parameters()] == ["up"]


def test_scale_uses_the_rank_that_was_asked_for() -> None:
    assert TensorTrain(CONV).scale == 1.0
    assert TensorTrain(DEPTHWISE, rank=64, alpha=32.0).scale == 0.5


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": math.inf}])
def test_option_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(convpeft.OptionError, match=rf"'tt': {next(iter(options))}=.* must be above 0"):
        TensorTrain(CONV, **options)
