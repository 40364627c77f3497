"""TKD-CPD: sizes, clamping and start."""

import math

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.cp_tucker import CPTucker
from convpeft.sites import Site

CONV = Site("conv", "conv", (64, 32, 3, 3))
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)
LINEAR = Site("linear", "linear", (40, 96))
VOLUME = Site("volume", "conv", (12, 6, 3, 5, 2))
SITES = pytest.mark.parametrize("site", [CONV, DEPTHWISE, LINEAR, VOLUME], ids=lambda site: site.path)


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


@pytest.mark.parametrize(
    ("site", "rank", "core_rank"), [(CONV, 8, None), (CONV, 4, 12), (VOLUME, 3, 5), (LINEAR, 6, 4)]
)
def test_size_is_the_formula(site: Site, rank: int, core_rank: int | None) -> None:
    terms, positions = core_rank or rank, math.prod(site.kernel)
    outputs, inputs = site.shape[:2]
    expected = inputs * rank + outputs * rank + terms * (2 * rank + positions)
    assert size(CPTucker(site, rank=rank, core_rank=core_rank)) == expected


@SITES
@pytest.mark.parametrize("core_rank", [None, 1, 10, 10**6])
def test_largest_rank_is_the_last_that_is_no_larger_than_the_layer(site: Site, core_rank: int | None) -> None:
    largest = CPTucker.largest_rank(site, core_rank=core_rank)
    assert 1 <= largest <= site.out_channels
    assert CPTucker(site, rank=10**6, core_rank=core_rank).up.shape[1] == largest
    assert size(CPTucker(site, rank=10**6, core_rank=core_rank)) <= math.prod(site.shape)


def test_depthwise_layer_keeps_its_rank_on_the_output_side() -> None:
    adapter = CPTucker(DEPTHWISE, rank=4)
    assert (adapter.up.shape, adapter.core_down.shape, adapter.down.shape) == ((32, 4), (4, 1), (1, 1))


def test_core_has_no_more_terms_than_it_can_need() -> None:
    assert CPTucker(LINEAR, rank=4, core_rank=100).spatial.shape == (4, 1)
    assert CPTucker(CONV, rank=2, core_rank=100).spatial.shape == (4, 9)


def test_start_is_zero_on_the_output_side_alone() -> None:
    adapter = CPTucker(CONV)
    adapter.start(torch.zeros(CONV.shape), None, torch.Generator().manual_seed(0))
    assert torch.count_nonzero(adapter.up) == 0
    for factor in (adapter.core_up, adapter.spatial, adapter.core_down, adapter.down):
        assert torch.count_nonzero(factor) == factor.numel()


def test_scale_uses_the_rank_that_was_asked_for() -> None:
    assert CPTucker(CONV, rank=16).scale == 1.0
    assert CPTucker(DEPTHWISE, rank=64, core_rank=2, alpha=32.0).scale == 0.5


@pytest.mark.parametrize("options", [{"rank": 0}, {"core_rank": 0}, {"alpha": -1.0}])
def test_option_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(convpeft.OptionError, match=rf"'cp-tucker': {next(iter(options))}=.* must be above 0"):
        CPTucker(CONV, **options)
