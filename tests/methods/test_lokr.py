"""LoKr: splits, low-rank thresholds, scale, size and start, as LyCORIS has them."""

import math

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.lokr import Lokr
from convpeft.sites import Site

CONV = Site("conv", "conv", (128, 64, 3, 3))  # (8 * 16, 8 * 8)
LINEAR = Site("linear", "linear", (512, 360))  # (16 * 32, 18 * 20)
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)
PRIME = Site("prime", "conv", (13, 3, 3, 3))
TINY = Site("tiny", "conv", (2, 1, 1), groups=2)
SITES = [
    CONV,
    LINEAR,
    DEPTHWISE,
    PRIME,
    Site("video", "conv", (12, 10, 3, 2, 1)),
    Site("lopsided", "linear", (1024, 4)),
]


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


@pytest.mark.parametrize(
    ("outputs", "factor", "smaller"),
    [  # what factorization of LyCORIS 4.1.3 returns
        *((127, factor, 1) for factor in (-1, 2, 4, 8, 16)),
        *((128, factor, smaller) for factor, smaller in [(-1, 8), (2, 2), (4, 4), (8, 8), (16, 8)]),
        *((250, factor, smaller) for factor, smaller in [(-1, 10), (2, 2), (4, 2), (8, 5), (16, 10)]),
        *((360, factor, smaller) for factor, smaller in [(-1, 18), (2, 2), (4, 4), (8, 8), (16, 15)]),
        *((512, factor, smaller) for factor, smaller in [(-1, 16), (2, 2), (4, 4), (8, 8), (16, 16)]),
        *((1024, factor, smaller) for factor, smaller in [(-1, 32), (2, 2), (4, 4), (8, 8), (16, 16)]),
    ],
)
def test_split_is_the_one_of_lycoris(outputs: int, factor: int, smaller: int) -> None:
    adapter = Lokr(Site("linear", "linear", (outputs, 64)), rank=10**6 if outputs != 127 else 1, factor=factor)
    assert adapter.first.shape[0] == smaller


def test_size_is_the_formula() -> None:
    assert size(Lokr(CONV, rank=4)) == 8 * 8 + 4 * (16 + 8 * 9)
    assert size(Lokr(CONV, rank=8)) == 8 * 8 + 16 * 8 * 9
    assert size(Lokr(CONV, rank=3, decompose_both=True)) == 3 * (8 + 8) + 3 * (16 + 8 * 9)
    assert size(Lokr(LINEAR, rank=4)) == 16 * 18 + 4 * (32 + 20)


@pytest.mark.parametrize(
    ("options", "low"),
    [
        ({"rank": 7}, {"second"}),  # 7 < 16 / 2
        ({"rank": 8}, set()),
        ({"rank": 3, "decompose_both": True}, {"first", "second"}),  # 3 < 8 / 2
        ({"rank": 4, "decompose_both": True}, {"second"}),
    ],
)
def test_factor_is_low_rank_below_half_of_its_larger_side(options: dict, low: set) -> None:
    names = {name for name, _ in Lokr(CONV, **options).named_parameters()}
    assert {name.removeprefix("up_") for name in names if name.startswith("up_")} == low


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1.0),
        ({"rank": 4, "alpha": 1.0}, 0.25),
        ({"rank": 64, "alpha": 1.0}, 1.0),  # no factor is low-rank
        ({"rank": 3, "alpha": 6.0, "decompose_both": True}, 2.0),
    ],
)
def test_scale_is_one_where_no_factor_is_low_rank(options: dict, scale: float) -> None:
    assert Lokr(CONV, **options).scale == scale


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.path)
@pytest.mark.parametrize("decompose_both", [True, False])
@pytest.mark.parametrize("factor", [-1, 1, 3])
def test_adapter_of_any_rank_is_no_larger_than_its_layer(site: Site, decompose_both: bool, factor: int) -> None:
    for rank in (1, 2, 4, 8, 15, 40, 10**6):
        adapter = Lokr(site, rank=rank, factor=factor, decompose_both=decompose_both)
        assert 0 < size(adapter) <= math.prod(site.shape)


def test_layer_of_prime_sizes_is_low_rank_and_its_rank_limited() -> None:
    assert Lokr.largest_rank(PRIME) == (13 * 27 - 1) // (13 + 27)
    assert Lokr(PRIME, rank=64).up_second.shape == (13, 8)
    assert Lokr.largest_rank(TINY) == 0
    assert Lokr.largest_rank(CONV) is None
    assert Lokr.largest_rank(CONV, factor=1) == (128 * 64 * 9 - 1) // (128 + 64 * 9)


@pytest.mark.parametrize(
    ("options", "zeros"), [({"rank": 2, "decompose_both": True}, "down_second"), ({"rank": 64}, "second")]
)
def test_start_is_zero_in_one_tensor_alone(options: dict, zeros: str) -> None:
    adapter = Lokr(CONV, **options)
    adapter.start(torch.zeros(CONV.shape), None, torch.Generator().manual_seed(0))
    for name, parameter in adapter.named_parameters():
        assert torch.count_nonzero(parameter) == (0 if name == zeros else parameter.numel())


def test_single_number_starts_at_one() -> None:
    adapter = Lokr(PRIME)
    adapter.start(torch.zeros(PRIME.shape), None, torch.Generator().manual_seed(0))
    assert adapter.first.tolist() == [[1.0]]


@pytest.mark.parametrize("site", [CONV, LINEAR, DEPTHWISE], ids=lambda site: site.path)
def test_delta_is_the_kronecker_product(site: Site) -> None:
    adapter = Lokr(site, rank=2, alpha=3.0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    kernel = (1,) * len(site.kernel)
    second = (adapter.up_second @ adapter.down_second).view(adapter.up_second.shape[0], -1, *site.kernel)
    expected = 1.5 * torch.kron(adapter.first.view(*adapter.first.shape, *kernel), second)
    torch.testing.assert_close(adapter(torch.zeros(site.shape), None)[0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"'lokr': rank=0 is out of range"),
        ({"alpha": -1.0}, r"'lokr': alpha=-1.0 is out of range"),
        ({"factor": 0}, r"'lokr': factor=0 is out of range, it must be -1 \(nearest to a square\) or at least 1"),
    ],
)
def test_option_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(convpeft.OptionError, match=message):
        Lokr(CONV, **options)
