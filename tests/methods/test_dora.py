"""What is peculiar to DoRA: lengths of filters."""

import pytest
import torch
from torch import nn

import convpeft


@pytest.mark.promise("C01")
def test_fresh_adapter_on_a_transposed_convolution_changes_no_bit() -> None:
    """Its weight is seen through a permutation; both lengths of a filter have to be summed in one order."""
    for seed in range(200):
        torch.manual_seed(seed)
        layer = nn.ConvTranspose2d(4 + seed % 9, 11, 1 + seed % 3, bias=False).eval()
        x = torch.randn(2, layer.in_channels, 3, 3)
        expected = layer(x)
        assert torch.equal(convpeft.attach(layer, "dora", include=["conv"], rank=1)(x), expected)
