"""The serial residual adapter: its size, its two modes, and when its statistics move."""

import copy

import pytest
import torch
from torch import nn

import convpeft
from convpeft.methods.residual_serial import ResidualSerial
from convpeft.sites import Site

CONV = Site("conv", "conv", (16, 8, 3, 3))
GROUPED = Site("grouped", "conv", (12, 2, 5), groups=3)
DEPTHWISE = Site("depthwise", "conv", (10, 1, 3, 3, 3), groups=10)
LAYERS = [
    nn.Conv1d(4, 6, 3, stride=2),
    nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
    nn.Conv3d(4, 8, 2, groups=4),
    nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
]


def size(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


def adapted(layer: nn.Module, **options: object) -> tuple[nn.Module, nn.Module, ResidualSerial]:
    """A layer in training with a drawn adapter, the layer before, and the adapter."""
    base = copy.deepcopy(layer)
    convpeft.attach(layer, "residual-serial", include=["conv"], **options).train()
    part = next(module for module in layer.modules() if isinstance(module, ResidualSerial))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer, base, part


def as_modules(part: ResidualSerial, dims: int) -> nn.Module:
    """What the paper runs after the layer: BatchNorm, then a 1x1 convolution."""
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](part.site.out_channels)
    mix = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](
        part.site.out_channels, part.site.out_channels, 1, groups=part.site.groups, bias=False
    )
    norm.load_state_dict(
        {"weight": part.gain, "bias": part.shift, "running_mean": part.running_mean, "running_var": part.running_var},
        strict=False,
    )
    mix.weight.data = part.adapter.detach().view_as(mix.weight)
    return nn.Sequential(norm, mix)


@pytest.mark.parametrize(("site", "matrix"), [(CONV, 16 * 16), (GROUPED, 12 * 4), (DEPTHWISE, 10)])
def test_size_is_a_matrix_a_group_and_a_norm(site: Site, matrix: int) -> None:
    assert size(ResidualSerial(site)) == matrix + 2 * site.out_channels
    assert size(ResidualSerial(site, own_norm=False)) == matrix
    assert size(ResidualSerial(site, learned_scale=True)) == matrix + 2 * site.out_channels + 1


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_training_is_the_modules_of_the_paper_after_the_layer(layer: nn.Module) -> None:
    layer, base, part = adapted(copy.deepcopy(layer))
    dims = len(part.site.kernel)
    after = as_modules(part, dims).train()
    for seed in range(3):
        x = torch.randn(3, 4, *[6] * dims, generator=torch.Generator().manual_seed(seed))
        u = base(x)
        torch.testing.assert_close(layer(x), u + after(u), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part.running_mean, after[0].running_mean)
    torch.testing.assert_close(part.running_var, after[0].running_var)
    torch.testing.assert_close(layer.eval()(x), base(x) + after.eval()(base(x)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_start_is_the_layer_itself_in_both_modes(training: bool) -> None:
    layer = nn.Conv2d(4, 6, 3).train(training)
    x = torch.randn(2, 4, 5, 5)
    expected = layer(x)
    convpeft.attach(layer, "residual-serial", include=["conv"])
    layer(x).square().sum().backward()
    assert torch.equal(layer(x), expected)
    grads = {name.rpartition(".")[2]: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert grads["adapter"].abs().sum() > 0


def moved(layer: nn.Module, part: ResidualSerial) -> bool:
    before = part.running_mean.clone(), part.running_var.clone()
    layer(torch.randn(4, 4, 6, 6))
    return not all(torch.equal(a, b) for a, b in zip(before, (part.running_mean, part.running_var), strict=True))


def test_statistics_move_only_while_this_adapter_is_trained() -> None:
    layer, _, part = adapted(nn.Conv2d(4, 6, 3))
    assert moved(layer, part)
    with convpeft.disabled(layer):
        assert not moved(layer, part)
    assert not moved(layer.eval(), part)
    convpeft.attach(layer.train(), "lora", name="second", include=["conv"])
    assert not part.runs_beside
    assert not moved(layer, part)


def test_without_own_norm_training_is_evaluation_and_can_be_merged() -> None:
    layer, base, part = adapted(nn.Conv2d(4, 6, 3, bias=False), own_norm=False)
    x = torch.randn(2, 4, 6, 6)
    u = base(x)
    expected = u + torch.einsum("oc,bchw->bohw", part.adapter, u)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    plain = convpeft.merge(layer)
    assert plain.bias is None
    torch.testing.assert_close(plain(x), expected, atol=1e-5, rtol=1e-5)


def test_merging_is_refused_while_the_norm_goes_by_the_batch() -> None:
    layer, _, _ = adapted(nn.Conv2d(4, 6, 3))
    with pytest.raises(convpeft.ModelError, match=r"merges in evaluation only. Call model.eval\(\)"):
        convpeft.merge(layer)
    x = torch.randn(2, 4, 6, 6)
    expected = layer.eval()(x)
    torch.testing.assert_close(convpeft.merge(layer)(x), expected, atol=1e-5, rtol=1e-5)


def test_one_value_a_channel_has_no_variance() -> None:
    layer, _, _ = adapted(nn.Conv2d(4, 6, 3))
    with pytest.raises(
        convpeft.ModelError, match=r"normalises by the batch in training and got 1 value a channel\. Use larger batches"
    ):
        layer(torch.randn(1, 4, 3, 3))
    layer.eval()(torch.randn(1, 4, 3, 3))


def test_paper_places_it_after_spatial_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(1, 3, 4, 4))
    convpeft.attach(model, "residual-serial")
    assert list(convpeft.count(model).layers) == ["0"]


@pytest.mark.parametrize("method", ["residual-serial", "residual-parallel"])
def test_decay_of_the_adapter_is_its_own(method: str) -> None:
    model = convpeft.attach(nn.Sequential(nn.Conv2d(3, 4, 3)), method, weight_decay=0.5, learned_scale=True)
    decays = {
        parameter: group["weight_decay"]
        for group in convpeft.param_groups(model, weight_decay=0.1)
        for parameter in group["params"]
    }
    names = {name.rpartition(".")[2]: parameter for name, parameter in model.named_parameters()}
    assert decays[names["adapter"]] == 0.5
    assert decays[names["learned_scale"]] == 0.0
    convpeft.detach(model)
    convpeft.attach(model, method)
    assert next(group["weight_decay"] for group in convpeft.param_groups(model, weight_decay=0.1)) == 0.1


@pytest.mark.parametrize("method", ["residual-serial", "residual-parallel"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_decay_out_of_range_is_refused(method: str, value: float) -> None:
    with pytest.raises(convpeft.OptionError, match=f"method '{method}': weight_decay=.* must be 0 or more"):
        convpeft.attach(nn.Sequential(nn.Conv2d(3, 4, 3)), method, weight_decay=value)


def test_half_precision_trains() -> None:
    layer = nn.Conv2d(4, 6, 3).train()
    convpeft.attach(layer, "residual-serial", include=["conv"])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(2, 4, 6, 6))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    narrow = convpeft.attach(nn.Conv2d(4, 6, 3).bfloat16().train(), "residual-serial", include=["conv"])
    assert narrow(torch.randn(2, 4, 6, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
