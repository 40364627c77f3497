"""MLAE: experts, their masks, and what the masks depend on."""

import copy
import math

import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.methods.mlae import Mlae
from convpeft.sites import Site


@pytest.mark.parametrize("site", [Site("a", "conv", (16, 8, 3, 3)), Site("b", "linear", (10, 64))])
def test_size_is_lora_and_one_weight_an_expert(site: Site) -> None:
    adapter = Mlae(site, rank=3)
    expected = 3 * (site.out_channels + site.fan_in + 1)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == expected
    largest = Mlae.largest_rank(site)
    assert largest * (site.out_channels + site.fan_in + 1) <= math.prod(site.shape)


def adapted(**options: object) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3)
    return randomise(convpeft.attach(layer, "mlae", include=["conv"], **options)).train()


def part_of(layer: nn.Module) -> Mlae:
    return next(module for module in layer.modules() if isinstance(module, Mlae))


def test_mask_leaves_experts_out_in_training_only() -> None:
    layer = adapted(rank=6)
    part = part_of(layer)
    part.mask.copy_(torch.tensor([1.0, 0, 1, 0, 0, 0]))
    delta = (layer.weight - layer._parameters["weight"]).flatten(1)
    experts = [part.expert[r] * torch.outer(part.up[:, r], part.down[r]) for r in range(6)]
    assert torch.allclose(delta, 2 * (experts[0] + experts[2]), atol=1e-6)
    layer.eval()
    assert torch.allclose((layer.weight - layer._parameters["weight"]).flatten(1), sum(experts), atol=1e-6)


def test_mask_stays_until_the_next_step() -> None:
    layer = adapted(rank=8)
    before = layer.weight.clone()
    assert torch.equal(layer.weight, before)
    masks = set()
    for _ in range(20):
        convpeft.after_step(layer)
        masks.add(tuple(part_of(layer).mask.tolist()))
    assert len(masks) > 5


def test_masks_keep_the_share_that_dropout_says() -> None:
    part = part_of(adapted(rank=8, dropout=0.25))
    total = 0.0
    for _ in range(500):
        part.draw_mask()
        total += float(part.mask.mean())
    assert total / 500 == pytest.approx(0.75, abs=0.03)


def test_masks_leave_the_global_random_numbers_alone_and_repeat() -> None:
    layer = adapted(rank=8)
    twin = copy.deepcopy(layer)
    state = torch.get_rng_state()
    convpeft.after_step(layer)
    assert torch.equal(torch.get_rng_state(), state)
    convpeft.after_step(twin)
    assert torch.equal(part_of(layer).mask, part_of(twin).mask)


def test_loop_without_the_hook_is_stopped() -> None:
    layer = adapted(rank=8)
    optimizer = torch.optim.SGD(convpeft.param_groups(layer, lr=0.1))
    with pytest.raises(
        convpeft.ModelError, match=r"'mlae' needs convpeft\.after_step and the training loop took steps"
    ):
        for _ in range(3):
            layer(torch.randn(1, 8, 5, 5)).sum().backward()
            optimizer.step()


def test_loop_without_masks_needs_no_hook() -> None:
    layer = adapted(rank=8, dropout=0.0)
    optimizer = torch.optim.SGD(convpeft.param_groups(layer, lr=0.1))
    for _ in range(3):
        layer(torch.randn(1, 8, 5, 5)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_dropout_out_of_range_is_refused(dropout: float) -> None:
    with pytest.raises(convpeft.OptionError, match="at least 0 and below 1"):
        adapted(dropout=dropout)
