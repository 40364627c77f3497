"""CoLoRA: both orders, the paper's sizes and biases, merge and reset."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise, relative_error
from convpeft.methods.colora import Colora
from convpeft.sites import Site
from reference import colora as reference

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16() -> nn.Module:
    """VGG16's convolutions by block, and the paper's head for four classes."""
    model, inputs = nn.Module(), 3
    with torch.device("meta"):
        for number, widths in enumerate(BLOCKS, start=1):
            layers = nn.Sequential()
            for width in widths:
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                inputs = width
            model.add_module(f"block{number}", layers)
        model.top = nn.Sequential(nn.Conv2d(512, 128, 1), nn.Linear(7 * 7 * 128, 128), nn.Linear(128, 4))
    return model.to_empty(device="cpu").requires_grad_(False)


# methods.md 2.4: parameters trained by the paper, head included, for the blocks that hold adapters.
PUBLISHED = {
    (1, 2, 3, 4, 5): 2_550_084,
    (2, 3, 4, 5): 2_544_388,
    (3, 4, 5): 2_516_996,
    (4, 5): 2_344_708,
    (5,): 1_672_452,
}


@pytest.mark.parametrize("blocks", PUBLISHED, ids=str)
def test_published_sizes_of_vgg16(blocks: tuple[int, ...]) -> None:
    model = vgg16()
    include = [f"block{number}" for number in blocks]
    convpeft.attach(model, "colora", include=include, also_train=["top"], bias="paper")
    assert convpeft.count(model).trainable == PUBLISHED[blocks]


def test_published_sizes_of_vgg16_without_adapters() -> None:
    model = vgg16()
    assert sum(parameter.numel() for parameter in model.parameters()) == 15_583_812
    convpeft.attach(model, "full", include=["top"], norm="frozen")
    assert convpeft.count(model).trainable == 869_124
    convpeft.detach(model)
    convpeft.attach(model, "bitfit", exclude=["top"], also_train=["top"])
    assert convpeft.count(model).trainable == 873_348


@pytest.mark.parametrize("site", [Site("a", "conv", (16, 8, 3, 3)), Site("b", "conv", (12, 3, 5), groups=2)])
@pytest.mark.parametrize("order", ["pointwise-first", "depthwise-first"])
def test_size_is_that_of_the_two_convolutions(site: Site, order: str) -> None:
    out, inside, *kernel = site.shape
    rows = out if order == "pointwise-first" else inside * site.groups
    adapter = Colora(site, order=order, bias="none")
    assert sum(parameter.numel() for parameter in adapter.parameters()) == out * inside + rows * int(np.prod(kernel))


def layer_with(**options: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return convpeft.attach(nn.Conv2d(4, 6, 3, padding=1, bias=False), "colora", include=["conv"], **options)


@pytest.mark.parametrize("learned_scale", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 5), dilation=2, padding="same", padding_mode="reflect"),
        nn.Conv1d(4, 6, 3, groups=2, padding=2, padding_mode="circular", bias=False),
        nn.Conv3d(4, 4, 2, groups=4, padding="valid"),
    ],
    ids=["plain", "same", "grouped", "depthwise"],
)
def test_papers_two_biases_are_two_layers_beside_the_layer(layer: nn.Module, learned_scale: bool) -> None:
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, 4, *[7] * len(layer.kernel_size), dtype=torch.float64)
    base = layer(x)
    convpeft.attach(layer, "colora", include=["conv"], exclude=[], bias="paper", learned_scale=learned_scale)
    assert torch.equal(layer(x), base)
    randomise(layer)
    slots = next(iter(layer.convpeft.children()))
    tensors = {name: value.detach().numpy() for name, value in slots.named_parameters()}
    geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode", "groups")}
    geometry["kernel"] = layer.kernel_size
    options = {"learned_scale_value": float(tensors["learned_scale"][0]) if learned_scale else 1.0}
    expected = reference.new_output(x.numpy(), base.detach().numpy(), tensors, options, geometry)
    assert relative_error(layer(x), torch.from_numpy(expected)) <= 1e-12


def test_inner_bias_is_no_bias_of_the_layer_at_the_borders() -> None:
    layer = layer_with(bias="paper")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(("inner", "depthwise")):
                parameter.fill_(1.0)
    added = (layer(torch.zeros(1, 4, 5, 5)))[0, 0]
    assert (added[2, 2].item(), added[0, 0].item()) == (pytest.approx(9.0), pytest.approx(4.0))
    with pytest.raises(convpeft.ModelError, match="'colora' at '' is no map of weights"):
        convpeft.merge(layer)


def test_papers_biases_cannot_be_merged_every_epoch() -> None:
    with pytest.raises(convpeft.OptionError, match="merge_every='epoch' cannot merge the inner bias"):
        layer_with(bias="paper", merge_every="epoch")


def test_merge_and_reset_keeps_the_function_and_clears_the_optimiser() -> None:
    layer = randomise(layer_with(merge_every="epoch"))
    x = torch.randn(2, 4, 6, 6)
    optimizer = torch.optim.AdamW(convpeft.param_groups(layer, lr=0.1, weight_decay=0.0))
    convpeft.plan_training(layer, epochs=2, steps_per_epoch=2)
    base = layer._parameters["weight"].clone()
    for step in range(1, 5):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            before = layer(x)
        convpeft.after_step(layer, optimizer)
        assert torch.allclose(layer(x), before, atol=1e-5)
        factors = {name.rpartition(".")[2]: parameter for name, parameter in layer.named_parameters()}
        if step % 2 == 0:
            assert not factors["depthwise"].any()
            assert factors["pointwise"].any()
            assert not optimizer.state[factors["depthwise"]]
            assert optimizer.state[factors["shift"]]
        else:
            assert factors["depthwise"].any()
            assert optimizer.state[factors["depthwise"]]
    assert torch.equal(layer._parameters["weight"], base)
    assert torch.linalg.matrix_rank(layer.weight.detach()[0].flatten(1) - base[0].flatten(1)) > 1


def test_merged_sum_is_saved_with_the_adapter(tmp_path) -> None:
    layer = randomise(layer_with(merge_every="epoch"))
    x = torch.randn(2, 4, 6, 6)
    convpeft.save(layer, tmp_path / "adapter")
    torch.manual_seed(0)
    fresh = convpeft.load(nn.Conv2d(4, 6, 3, padding=1, bias=False), tmp_path / "adapter")
    assert torch.equal(fresh(x), layer(x))


def test_linear_layers_are_refused() -> None:
    with pytest.raises(convpeft.OptionError, match=r"layer '0' \(linear.*'colora' cannot adapt it, because a linear"):
        convpeft.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "colora", include=["0"])
