"""Thin convolutions are the convolution with the reconstructed kernel, borders included."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from convpeft.decompositions import METHODS, Thin, decompose, replace_layer, thin_layers
from convpeft.decompositions.replacing import why_not
from convpeft.errors import ModelError
from convpeft.sites import all_sites

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64 in another order
RANKS = {"cp": (5,), "tucker": (3, 2), "tucker-cp": (3, 2, 4)}
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def kernel_of(chain: nn.Sequential, shape: tuple[int, ...], form: str) -> torch.Tensor:
    """The kernel that the chain stands for, by its formula."""
    parts = [layer.weight.detach().flatten(2) for layer in chain]
    if form == "cp":
        found = torch.einsum("ri,rs,or->ois", parts[0][..., 0], parts[1][:, 0], parts[2][..., 0])
    elif form == "tucker":
        found = torch.einsum("bi,abs,oa->ois", parts[0][..., 0], parts[1], parts[2][..., 0])
    else:
        first, second, taps, third, last = parts
        found = torch.einsum(
            "bi,rb,rs,ar,oa->ois", first[..., 0], second[..., 0], taps[:, 0], third[..., 0], last[..., 0]
        )
    return found.reshape(shape)


@st.composite
def convolutions(draw):
    """A Conv1d or Conv2d of any geometry with one group, and images for it."""
    axes = draw(st.integers(1, 2))
    numbers = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, dilation, mode = numbers(1, 4), numbers(1, 3), draw(st.sampled_from(sorted(MODES)))
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1,) * axes if padding == "same" else numbers(1, 3)
    if padding == "numbers":
        padding = numbers(0, 3)
    size = numbers(10, 13)
    layer = (nn.Conv1d, nn.Conv2d)[axes - 1](
        draw(st.integers(2, 4)),
        draw(st.integers(3, 5)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=mode,
        bias=draw(st.booleans()),
    ).double()
    torch.manual_seed(draw(st.integers(0, 100)))
    return layer, torch.randn(2, layer.in_channels, *size, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(), form=st.sampled_from(sorted(RANKS)))
def test_thin_network_equals_the_convolution_with_the_reconstructed_kernel(drawn, form):
    layer, images = drawn
    chain = thin_layers(layer, Thin(form, RANKS[form]))
    for parameter in chain.parameters():
        nn.init.normal_(parameter)
    kernel = kernel_of(chain, tuple(layer.weight.shape), form)
    axes = len(layer.kernel_size)
    if layer.padding == "same":
        whole = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(each // 2, each - each // 2) for each in whole]
    else:
        sides = [(0, 0)] * axes if layer.padding == "valid" else [(each, each) for each in layer.padding]
    flat = [number for pair in reversed(sides) for number in pair]
    padded = functional.pad(images, flat, mode=MODES[layer.padding_mode]) if any(flat) else images
    convolve = (functional.conv1d, functional.conv2d)[axes - 1]
    assume(
        all(p >= d * (k - 1) + 1 for p, d, k in zip(padded.shape[2:], layer.dilation, layer.kernel_size, strict=True))
    )
    wanted = convolve(padded, kernel, chain[-1].bias, layer.stride, 0, layer.dilation)
    torch.testing.assert_close(chain(images), wanted, **EXACT)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_thin_layers_hold_the_decomposition_and_the_bias(method):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1).double()
    ranks = {"cp": (60,), "tucker": (8, 6), "tucker-cp": (8, 6, 60)}[METHODS[method]]
    chain = thin_layers(layer, Thin(METHODS[method], ranks), decompose(layer.weight, method, ranks).weights)
    images = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        assert (chain(images) - layer(images)).norm() < 0.03 * layer(images).norm()
    assert torch.equal(chain[-1].bias, layer.bias)
    assert [each.bias is None for each in chain] == [True] * (len(chain) - 1) + [False]


def test_thin_layers_keep_mode_type_and_a_missing_bias():
    layer = nn.Conv2d(3, 4, 3, bias=False).half().eval()
    chain = thin_layers(layer, Thin("cp", (2,)))
    assert not any(each.training for each in chain.modules())
    assert {parameter.dtype for parameter in chain.parameters()} == {torch.float16}
    assert chain[-1].bias is None


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 1), "1x1: a matrix, with no taps to separate"),
        (nn.Conv2d(4, 4, 3, groups=4), "grouped: a depthwise kernel is thin already"),
        (nn.Conv2d(4, 8, 3, groups=2), "groups do not share their channels"),
        (nn.ConvTranspose2d(4, 4, 3), "transposed"),
        (type("Standardised", (nn.Conv2d,), {})(4, 4, 3), "a Standardised computes its weight in a way of its own"),
        (nn.Linear(4, 4), "a linear layer has no kernel"),
    ],
)
def test_layers_that_are_left_alone_say_why(layer, reason):
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 2))
    site = next(site for site in all_sites(model) if site.path == "0")
    assert reason in str(why_not(layer, site))


def test_layer_with_a_hook_is_left_alone():
    layer = nn.Conv2d(4, 4, 3)
    site = all_sites(nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 2)))[0]
    assert why_not(layer, site) is None
    layer.register_forward_hook(lambda *_: None)
    assert why_not(layer, site) == "it has hooks"


def test_grouped_layer_is_refused():
    with pytest.raises(
        ModelError, match=r"cannot be replaced by thin convolutions: expected an nn\.Conv1d, nn\.Conv2d or"
    ):
        thin_layers(nn.Conv2d(4, 4, 3, groups=2), Thin("cp", (1,)))


def test_layer_that_is_used_twice_is_replaced_twice():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(nn.Sequential(shared), shared)
    new = thin_layers(shared, Thin("cp", (2,)))
    assert replace_layer(model, "0.0", new) is shared
    assert model[0][0] is new
    assert model[1] is new


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere", "'nowhere': this model has none"), ("", "the model is one layer and cannot be replaced")],
)
def test_layer_that_is_not_there_is_an_error(path, words):
    with pytest.raises(ModelError, match=words):
        replace_layer(nn.Conv2d(3, 3, 3), path, nn.Identity())
