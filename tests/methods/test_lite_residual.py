"""The lite residual: its size, the modules of the paper, maps of every size, and where it sits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from convpeft.methods.lite_residual import LiteResidual
from convpeft.sites import Site
from reference.lite_residual import new_output
from small_network import by_definition

BLOCK = Site("block", "block", (24, 16, 1, 1), tensor="")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Block(nn.Module):
    """Two convolutions, the first with a stride."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dims: int = 2) -> None:
        super().__init__()
        self.first = CONVOLUTIONS[dims](inputs, outputs, 3, stride=stride, padding=1)
        self.second = CONVOLUTIONS[dims](outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Grows(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=3.0))


def network(block: nn.Module, channels: int, dims: int = 2) -> nn.Module:
    """A network of two blocks, of which a test looks at the first."""
    last = Block(channels, channels, dims=dims)
    return nn.Sequential(block, last, POOLS[dims](1), nn.Flatten(), nn.Linear(channels, 2))


def parts(model: nn.Module) -> list[LiteResidual]:
    return [module for module in model.modules() if isinstance(module, LiteResidual)]


def draw(model: nn.Module) -> LiteResidual:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in parts(model):
            for parameter in part.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return parts(model)[0]


@pytest.mark.parametrize(
    ("site", "kernel", "size"),
    [
        (BLOCK, 5, 16 * 8 * 25 + 2 * 16 + 24 * 16 + 2 * 24),
        (BLOCK, 3, 16 * 8 * 9 + 2 * 16 + 24 * 16 + 2 * 24),
        (Site("odd", "conv", (8, 3, 7)), 5, 3 * 3 * 5 + 2 * 3 + 8 * 3 + 2 * 8),
        (Site("grouped", "conv", (8, 2, 3, 3), groups=4), 1, 8 * 4 + 2 * 8 + 8 * 8 + 2 * 8),
    ],
)
def test_size_is_the_formula_of_the_paper(site: Site, kernel: int, size: int) -> None:
    assert sum(parameter.numel() for parameter in LiteResidual(site, kernel=kernel).parameters()) == size


def test_wide_blocks_get_a_narrower_branch() -> None:
    assert LiteResidual(Site("wide", "block", (512, 512, 1, 1), tensor="")).filters.shape == (32, 256, 5, 5)
    assert LiteResidual(BLOCK, width=6).filters.shape == (6, 8, 5, 5)
    assert LiteResidual(BLOCK, width=5).filters.shape == (5, 16, 5, 5)


@pytest.mark.parametrize("stride", [1, 2])
def test_branch_is_the_modules_of_the_paper(stride: int) -> None:
    model = network(Block(16, 24, stride), 24)
    part = draw(convpeft.attach(model, "lite-residual", standardise=False))
    first = nn.Conv2d(16, 16, 5, stride=stride, padding=2, groups=2, bias=False)
    inner, outer, second = nn.GroupNorm(2, 16), nn.GroupNorm(3, 24), nn.Conv2d(16, 24, 1, bias=False)
    first.weight, inner.weight, inner.bias = part.filters, part.inner_gain, part.inner_shift
    second.weight.data, outer.weight, outer.bias = part.mix[..., None, None], part.outer_gain, part.outer_shift
    paper = nn.Sequential(nn.AvgPool2d(2), first, inner, nn.ReLU(), second, outer)
    given = torch.randn(2, 16, 12, 8)
    with convpeft.disabled(model):
        output = model[0](given)
    expected = output + F.interpolate(paper(given), output.shape[2:], mode="bilinear")
    torch.testing.assert_close(model[0](given), expected)


@pytest.mark.parametrize(
    ("block", "dims", "size"),
    [
        (lambda: Block(4, 6), 2, (7, 1)),
        (lambda: Block(4, 6, 2), 2, (2, 5)),
        (lambda: Block(3, 5, 3), 2, (7, 9)),
        (lambda: Grows(4, 6), 2, (3, 4)),
        (lambda: Block(4, 6, 2, 1), 1, (9,)),
        (lambda: Block(4, 6, 2, 3), 3, (4, 5, 6)),
    ],
)
@pytest.mark.parametrize("standardise", [True, False])
def test_maps_of_every_size_equal_the_reference(block: object, dims: int, size: tuple, standardise: bool) -> None:
    first = block()
    given = torch.randn(2, first.first.in_channels, *size)
    output = first(given)
    model = network(first, first.first.out_channels, dims)
    part = draw(convpeft.attach(model, "lite-residual", standardise=standardise))
    assert part.site.kind == "block"
    tensors = {name: parameter.detach().numpy() for name, parameter in part.named_parameters()}
    options = {"kernel": 5, "standardise": standardise}
    expected = torch.from_numpy(new_output(given.numpy(), output.detach().numpy(), tensors, options, None)).float()
    torch.testing.assert_close(model[0](given), expected, atol=1e-4, rtol=1e-4)


def test_start_changes_nothing_and_then_learns() -> None:
    model, x = network(Block(16, 24), 24), torch.randn(2, 16, 8, 8)
    expected = model(x)
    by_definition(convpeft.attach(model, "lite-residual"))
    assert torch.equal(model(x), expected)
    optimizer = torch.optim.SGD(convpeft.trainable_parameters(model), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in parts(model)[0].parameters())


def test_standardised_filters_do_not_depend_on_their_scale_or_mean() -> None:
    part = LiteResidual(BLOCK)
    part.start(torch.empty(0), None, torch.Generator().manual_seed(0))
    nn.init.ones_(part.outer_gain)
    given, output = torch.randn(2, 16, 8, 8), torch.randn(2, 24, 8, 8)
    before = part(given, output)
    with torch.no_grad():
        part.filters.mul_(3).add_(0.7)
    torch.testing.assert_close(part(given, output), before, atol=1e-4, rtol=1e-4)


def test_one_number_is_no_error_in_training() -> None:
    part = LiteResidual(Site("block", "block", (3, 1, 1, 1), tensor="")).train()
    part.start(torch.empty(0), None, None)
    assert torch.isfinite(part(torch.randn(1, 1, 1, 1), torch.randn(1, 3, 1, 1))).all()


def test_it_sits_on_blocks_or_on_spatial_convolutions_where_there_are_none() -> None:
    model = convpeft.attach(network(Block(4, 6), 6), "lite-residual")
    assert list(convpeft.count(model).layers) == ["0", "1"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    plain(torch.randn(1, 3, 6, 6))
    assert list(convpeft.count(convpeft.attach(plain, "lite-residual")).layers) == ["0"]


def test_biases_of_the_paper_are_a_second_method() -> None:
    model = convpeft.attach(network(Block(4, 6), 6), "lite-residual+bitfit")
    assert {"0", "0.first", "0.second"} <= set(convpeft.count(model).layers)


def test_width_out_of_range_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match="'lite-residual': width=0 is out of range, it must be above 0"):
        convpeft.attach(network(Block(4, 6), 6), "lite-residual", width=0)


@pytest.mark.parametrize("kernel", [0, 4, -1])
def test_kernel_out_of_range_is_refused(kernel: int) -> None:
    with pytest.raises(convpeft.OptionError, match=f"kernel={kernel} is out of range, it must be odd and above 0"):
        convpeft.attach(network(Block(4, 6), 6), "lite-residual", kernel=kernel)


def test_half_precision_trains() -> None:
    model = convpeft.attach(network(Block(4, 6), 6), "lite-residual")
    draw(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 4, 6, 6))
    output.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in convpeft.trainable_parameters(model))
