"""A fresh classifier over the old one."""

import torch

from convpeft.heads import FreshHead
from convpeft.sites import Site


def test_head_replaces_weight_and_bias() -> None:
    head = FreshHead(Site("fc", "linear", (10, 6), bias=True), num_classes=3)
    head.start(torch.zeros(10, 6), torch.zeros(10), torch.Generator().manual_seed(0))
    weight, bias = head(torch.randn(10, 6), torch.randn(10))
    assert weight is head.weight
    assert bias is head.bias
    assert (weight.shape, bias.shape) == ((3, 6), (3,))


def test_head_of_a_convolution_keeps_its_kernel() -> None:
    head = FreshHead(Site("fc", "conv", (10, 6, 1, 1)), num_classes=3)
    assert head.weight.shape == (3, 6, 1, 1)


def test_head_repeats_with_its_generator() -> None:
    heads = []
    for _ in range(2):
        head = FreshHead(Site("fc", "linear", (10, 6)), num_classes=3)
        head.start(torch.zeros(10, 6), None, torch.Generator().manual_seed(4))
        heads.append(head)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)
