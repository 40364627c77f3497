"""Conv-Adapter: its size, its four schemes against torch's own modules, and sizes that do not fit at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convpeft
from convpeft.methods.conv_adapter import ConvAdapter, nearest_divisor
from convpeft.sites import Site
from reference.conv_adapter import new_output

CONV = Site("conv", "conv", (64, 32, 3, 3))
DEPTHWISE = Site("depthwise", "conv", (96, 1, 7, 7), groups=96)
BLOCK = Site("block", "block", (256, 64, 1, 1), tensor="")
SCHEMES = ("conv-parallel", "conv-sequential", "residual-parallel", "residual-sequential")


class Block(nn.Module):
    """Two convolutions from 8 channels to 12, the first with a stride."""

    def __init__(self, stride: int, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 12, 3, stride=stride, padding=padding)
        self.second = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Grows(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), scale_factor=2.0)


def parts(model: nn.Module) -> list[ConvAdapter]:
    return [module for module in model.modules() if isinstance(module, ConvAdapter)]


def draw(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in parts(model):
            for parameter in part.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def expected(part: ConvAdapter, given: Tensor, output: Tensor, scheme: str) -> Tensor:
    tensors = {name: parameter.detach().numpy() for name, parameter in part.named_parameters()}
    return torch.from_numpy(
        new_output(given.detach().numpy(), output.detach().numpy(), tensors, {"scheme": scheme}, None)
    ).float()


@pytest.mark.parametrize(
    ("site", "scheme", "width", "size"),
    [
        (CONV, "conv-parallel", 4, 32 * 9 + 4 + 4 * 64 + 64 + 64),
        (CONV, "conv-sequential", 8, 64 * 9 + 8 + 8 * 64 + 64 + 64),
        (DEPTHWISE, "conv-parallel", 12, 96 * 49 + 12 + 12 * 96 + 96 + 96),
        (BLOCK, "residual-parallel", 8, 64 * 9 + 8 + 8 * 256 + 256 + 256),
        (BLOCK, "residual-sequential", 32, 256 * 9 + 32 + 32 * 256 + 256 + 256),
    ],
)
def test_size_is_the_formula_of_the_paper(site: Site, scheme: str, width: int, size: int) -> None:
    part = ConvAdapter(site, scheme=scheme)
    assert part.down.shape[0] == width
    assert sum(parameter.numel() for parameter in part.parameters()) == size


@pytest.mark.parametrize(
    ("number", "wanted", "found"), [(64, 8, 8), (3, 0.4, 1), (20, 2.5, 2), (17, 16, 17), (12, 5, 4)]
)
def test_width_divides_the_channels(number: int, wanted: float, found: int) -> None:
    assert nearest_divisor(number, wanted) == found


def test_parallel_is_the_modules_of_the_paper_beside_the_layer() -> None:
    layer, x = nn.Conv2d(16, 12, (3, 5), stride=2, padding=(1, 2), dilation=(2, 1)), torch.randn(2, 16, 9, 11)
    output = layer(x)
    draw(convpeft.attach(layer, "conv-adapter", include=["conv"]))
    (part,) = parts(layer)
    down = nn.Conv2d(16, 2, (3, 5), stride=2, padding=(1, 2), dilation=(2, 1), groups=2)
    down.weight, down.bias = part.down, part.down_bias
    up = nn.Conv2d(2, 12, 1)
    up.weight.data, up.bias = part.up[..., None, None], part.up_bias
    torch.testing.assert_close(layer(x), output + part.gain.view(-1, 1, 1) * up(torch.relu(down(x))))


def between(block: nn.Module) -> nn.Module:
    """A network of two blocks, of which a test looks at the first."""
    last = Block(1)
    last.first = nn.Conv2d(12, 12, 1)
    return nn.Sequential(block, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize("scheme", ["residual-parallel", "residual-sequential"])
@pytest.mark.parametrize(
    ("cls", "settings", "size"),
    [(Block, (1,), 8), (Block, (2,), 8), (Block, (2,), 9), (Block, (4, 0), 9), (Grows, (1,), 4)],
)
def test_residual_schemes_reach_the_size_of_the_block(
    cls: type[Block], settings: tuple, size: int, scheme: str
) -> None:
    model, given = between(cls(*settings)), torch.randn(2, 8, size, size + 1)
    output = model[0](given)
    draw(convpeft.attach(model, "conv-adapter", scheme=scheme, include=["block"], exclude=["1"]))
    (part,) = parts(model)
    assert part.site.kind == "block"
    torch.testing.assert_close(model[0](given), expected(part, given, output, scheme), atol=1e-5, rtol=1e-5)


def test_stride_beside_a_block_is_that_of_the_paper() -> None:
    model = convpeft.attach(between(Block(2)), "conv-adapter", scheme="residual-parallel", exclude=["1"])
    draw(model)
    (part,) = parts(model)
    given, output = torch.randn(2, 8, 8, 8), torch.randn(2, 12, 4, 4)
    down = F.conv2d(given, part.down, part.down_bias, stride=2, padding=1, groups=1)
    added = torch.einsum("ow,bwyx->boyx", part.up, torch.relu(down)) + part.up_bias.view(-1, 1, 1)
    torch.testing.assert_close(part(given, output), output + part.gain.view(-1, 1, 1) * added)


class PadsOnItsOwn(nn.Conv2d):
    """As TensorFlow does: the layer says padding 0 and pads to size / stride, more behind than before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def test_layer_that_pads_more_than_it_says_is_followed() -> None:
    model = nn.Sequential(PadsOnItsOwn(8, 12, 3, stride=2))
    x = torch.randn(2, 8, 8, 8)
    output = model(x)
    draw(convpeft.attach(model, "conv-adapter"))
    (part,) = parts(model)
    down = F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), part.down, part.down_bias, stride=2, groups=1))
    added = torch.einsum("ow,bwyx->boyx", part.up, down) + part.up_bias.view(-1, 1, 1)
    torch.testing.assert_close(model(x), output + part.gain.view(-1, 1, 1) * added)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_sit_where_the_paper_has_them(scheme: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), between(Block(2)))
    convpeft.attach(model, "conv-adapter", scheme=scheme)
    found = list(convpeft.count(model).layers)
    blocks = scheme.startswith("residual")
    assert found == (["1.0", "1.1"] if blocks else ["0", "1.0.first", "1.0.second", "1.1.second"])


def test_residual_scheme_falls_back_on_convolutions_without_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten())
    draw(convpeft.attach(model, "conv-adapter", scheme="residual-parallel"))
    (part,) = parts(model)
    assert part.down.shape == (1, 3, 3, 3)
    assert model(torch.randn(2, 3, 7, 7)).shape == (2, 8 * 9)


def test_only_the_start_of_the_paper_changes_the_network() -> None:
    x = torch.randn(2, 8, 6, 6)
    for init, same in (("zero", True), ("paper", False)):
        layer = nn.Conv2d(8, 12, 3)
        output = layer(x)
        convpeft.attach(layer, "conv-adapter", include=["conv"], init=init)
        assert torch.equal(layer(x), output) is same
        layer(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in convpeft.trainable_parameters(layer))
        assert parts(layer)[0].up.grad.abs().sum() > 0


def test_start_is_that_of_the_released_code() -> None:
    part = ConvAdapter(Site("conv", "conv", (512, 256, 3, 3)), init="paper")
    part.start(torch.empty(0), None, torch.Generator().manual_seed(0))
    assert np.isclose(part.down.std().item(), (2 / (32 * 9)) ** 0.5, rtol=0.05)
    assert np.isclose(part.up.std().item(), (2 / 512) ** 0.5, rtol=0.05)
    assert part.down_bias.abs().sum() == part.up_bias.abs().sum() == 0


def test_gamma_out_of_range_is_refused() -> None:
    with pytest.raises(convpeft.OptionError, match="'conv-adapter': gamma=0 is out of range, it must be above 0"):
        convpeft.attach(nn.Conv2d(3, 3, 3), "conv-adapter", include=["conv"], gamma=0)


def test_conv_scheme_refuses_a_block_and_names_the_scheme() -> None:
    site = Site("block", "block", (4, 4, 1, 1), tensor="")
    assert "residual-parallel" in ConvAdapter.refused[site.kind]


def test_half_precision_trains() -> None:
    layer = convpeft.attach(nn.Conv2d(8, 12, 3), "conv-adapter", include=["conv"], init="paper")
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(2, 8, 6, 6))
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
