"""FSF: the dictionary, the sparse codes, squares where there is no kernel, and sizes."""

import math

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.methods.fsf import Fsf
from convpeft.sites import Site

CONV = Site("conv", "conv", (16, 8, 3, 3))
POINTWISE = Site("pointwise", "conv", (12, 8, 1, 1))
DEPTHWISE = Site("depthwise", "conv", (32, 1, 3, 3), groups=32)


def started(site: Site, weight: Tensor | None = None, **options: object) -> Fsf:
    adapter = Fsf(site, **options)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(site.shape, generator=generator) if weight is None else weight
    adapter.start(weight, None, generator)
    return adapter


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (512, 256, 3, 3), (32, 1, 3, 3)])
def test_count_is_nine_atoms_of_nine_positions(shape: tuple[int, ...]) -> None:
    assert size(Fsf(Site("", "conv", shape))) == 81


@pytest.mark.parametrize(("site", "inputs"), [(CONV, 8), (DEPTHWISE, 1)])
def test_count_of_the_overcomplete_form(site: Site, inputs: int) -> None:
    assert size(Fsf(site, expansion=3)) == 9 * 3 * 9 + 9 * 3 * inputs


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((64, 32, 7, 7), {}, (9, 49)),
        ((64, 32, 5), {}, (5, 5)),
        ((2, 2, 3, 3), {}, (4, 9)),  # four kernels span no more than four directions
        ((64, 32, 1, 1), {}, (9, 16)),
        ((64, 32), {"atoms": 100}, (16, 16)),
        ((64, 32), {"block": 8}, (9, 64)),
        ((18, 12), {}, (9, 9)),  # 4 does not divide 18, 3 divides both
        ((7, 12), {}, (1, 1)),
    ],
)
def test_atoms_fit_the_layer(shape: tuple[int, ...], options: dict, expected: tuple[int, int]) -> None:
    site = Site("", "conv" if len(shape) > 2 else "linear", shape)
    assert tuple(Fsf(site, **options).delta.shape) == expected


@pytest.mark.parametrize("site", [CONV, POINTWISE, DEPTHWISE])
def test_dictionary_is_orthonormal(site: Site) -> None:
    dictionary = started(site).dictionary
    assert torch.allclose(dictionary @ dictionary.T, torch.eye(len(dictionary)), atol=1e-6)


def test_dictionary_finds_the_atoms_of_which_the_kernels_are_made() -> None:
    first, second = torch.eye(9)[2], torch.eye(9)[7]
    weight = torch.randn(16, 8, 1) * first + 5 * torch.randn(16, 8, 1) * second
    dictionary = started(CONV, weight.view(16, 8, 3, 3), atoms=2).dictionary
    assert dictionary[0] @ second > 0.99
    assert dictionary[1] @ first > 0.99


def test_start_repeats_bit_for_bit() -> None:
    assert torch.equal(started(CONV).dictionary, started(CONV).dictionary)


def test_moving_every_atom_by_itself_scales_the_kernels() -> None:
    weight = torch.randn(CONV.shape)
    adapter = started(CONV, weight, sparsity=0.0)
    adapter.delta.data.copy_(0.5 * adapter.dictionary)
    assert torch.allclose(adapter(weight, None)[0], 1.5 * weight, atol=1e-5)


def test_codes_below_the_sparsity_do_not_move() -> None:
    weight = torch.randn(CONV.shape)
    adapter = started(CONV, weight, sparsity=100.0)
    nn.init.ones_(adapter.delta)
    assert torch.equal(adapter(weight, None)[0], weight)


def test_square_is_made_of_neighbouring_channels() -> None:
    weight = torch.zeros(POINTWISE.shape)
    weight[4:8, :4] = 1.0
    adapter = started(POINTWISE, weight, atoms=1, sparsity=0.0)
    nn.init.ones_(adapter.delta)
    assert torch.equal(adapter(weight, None)[0] != weight, weight > 0)


@pytest.mark.parametrize("expansion", [0, 3])
def test_gradient_reaches_every_number(expansion: int) -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten()), "fsf", expansion=expansion)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}
    optimizer = torch.optim.SGD(convpeft.trainable_parameters(model), lr=0.1)
    for _ in range(2):
        model(torch.randn(3, 4, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.named_parameters():
        assert name not in before or (tensor != before[name]).all(), name


def test_layer_of_zeros_stays() -> None:
    adapter = started(CONV, torch.zeros(CONV.shape))
    nn.init.ones_(adapter.delta)
    assert torch.count_nonzero(adapter(torch.zeros(CONV.shape), None)[0]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": 0}, r"'fsf': atoms=0 is out of range, it must be above 0"),
        ({"block": 0}, r"block=0 is out of range, it must be above 0"),
        ({"sparsity": -1.0}, r"'fsf': sparsity=-1.0 is out of range, it must be 0 or more"),
        ({"sparsity": math.nan}, r"sparsity=nan is out of range"),
        ({"expansion": -1}, r"expansion=-1 is out of range, it must be 0 or more"),
    ],
)
def test_option_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(convpeft.OptionError, match=message):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3)), "fsf", **options)
