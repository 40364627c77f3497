"""What is peculiar to DoRA: lengths of filters."""

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.dora import Dora
from convpeft.sites import site_of


@pytest.mark.promise("C01")
def test_fresh_adapter_on_a_transposed_convolution_changes_no_bit() -> None:
    """Its weight is seen through a permutation; both lengths of a filter have to be summed in one order."""
    for seed in range(200):
        torch.manual_seed(seed)
        layer = nn.ConvTranspose2d(4 + seed % 9, 11, 1 + seed % 3, bias=False).eval()
        x = torch.randn(2, layer.in_channels, 3, 3)
        expected = layer(x)
        assert torch.equal(convpeft.attach(layer, "dora", include=["conv"], rank=1)(x), expected)


@pytest.mark.parametrize("left", [1.0, 0.05, 0.0])
def test_gradients_it_finds_itself_are_those_of_autograd(left: float) -> None:
    """Also where the update takes nearly all of a filter away (`left`), or all of it."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 9, 3, dtype=torch.float64)
    part = Dora(site_of(layer, "layer"), rank=3, alpha=2.0).double()
    for tensor in part.parameters():
        nn.init.normal_(tensor, std=0.5)
    with torch.no_grad():
        moved = part.scale * part.up @ part.down
        layer.weight[4] = (-moved[4] + left * torch.randn(36)).view(4, 3, 3)
    grad = torch.randn_like(layer.weight).contiguous(memory_format=torch.channels_last)
    weight = layer.weight.detach()
    expected = torch.autograd.grad(part(weight, None)[0], list(part.parameters()), grad)
    for found, wanted in zip(part.pull_back(weight, grad), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
