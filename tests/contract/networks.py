"""Random networks: convolutions of every geometry, norms, residual links, a module used twice, a linear head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from convpeft.injection import adapted_layers
from convpeft.slots import slots_of

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LARGEST_SPACE = {1: 12, 2: 10, 3: 5}
LARGEST_KERNEL = {1: 7, 2: 7, 3: 3}
Norm = Literal["batch", "group", "layer", "none"]


@dataclass(frozen=True)
class Geometry:
    """One convolution and the size of the input that it fits."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any
    padding_mode: str
    groups: int
    bias: bool
    transposed: bool
    output_padding: tuple[int, ...]
    space: tuple[int, ...]

    def build(self) -> nn.Module:
        """The layer itself."""
        dims = len(self.kernel)
        common: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias,
        }
        if self.transposed:
            return TRANSPOSED[dims](
                self.in_channels, self.out_channels, self.kernel, output_padding=self.output_padding, **common
            )
        return CONVOLUTIONS[dims](
            self.in_channels, self.out_channels, self.kernel, padding_mode=self.padding_mode, **common
        )

    @property
    def out_space(self) -> tuple[int, ...]:
        """Size of the output."""
        sizes = []
        for axis, size in enumerate(self.space):
            reach = self.dilation[axis] * (self.kernel[axis] - 1)
            if self.padding == "same":
                sizes.append(size)
                continue
            pad = 0 if self.padding == "valid" else _per_axis(self.padding, len(self.space))[axis]
            if self.transposed:
                sizes.append((size - 1) * self.stride[axis] - 2 * pad + reach + self.output_padding[axis] + 1)
            else:
                sizes.append((size + 2 * pad - reach - 1) // self.stride[axis] + 1)
        return tuple(sizes)


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


@st.composite
def geometries(
    draw: st.DrawFn,
    *,
    dims: int | None = None,
    in_channels: int | None = None,
    space: tuple[int, ...] | None = None,
    transposed: bool | None = None,
) -> Geometry:
    """Kernel 1-7, stride 1-3, dilation 1-3, groups up to depthwise, every padding and padding mode."""
    dims = draw(st.sampled_from([2, 2, 1, 3])) if dims is None else dims
    if space is None:
        space = tuple(draw(st.integers(2, LARGEST_SPACE[dims])) for _ in range(dims))
    inputs = draw(st.sampled_from([4, 6, 1, 2, 3, 8, 12])) if in_channels is None else in_channels
    turned = draw(st.integers(0, 4)) == 0 if transposed is None else transposed
    groups = draw(st.sampled_from([g for g in range(1, inputs + 1) if inputs % g == 0]))
    outputs = groups * draw(st.integers(1, max(1, 12 // groups)))
    uniform = draw(st.booleans())
    kernel = _drawn(draw, dims, LARGEST_KERNEL[dims], uniform=uniform)
    stride = _drawn(draw, dims, 3, uniform=uniform)
    dilation = _drawn(draw, dims, 3, uniform=uniform)
    bias = draw(st.booleans())
    if turned:
        padding = tuple(
            draw(st.integers(0, min(2, ((n - 1) * s + d * (k - 1)) // 2)))
            for n, s, d, k in zip(space, stride, dilation, kernel, strict=True)
        )
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        return Geometry(inputs, outputs, kernel, stride, dilation, padding, "zeros", groups, bias, True, extra, space)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    zero = (0,) * dims
    form = draw(st.sampled_from(["int", "tuple", "same", "valid"]))
    if form == "same":
        kernel, dilation = _shrunk_to(kernel, dilation, space, mode)
        ones = (1,) * dims
        return Geometry(inputs, outputs, kernel, ones, dilation, "same", mode, groups, bias, False, zero, space)
    needed, allowed = [], []
    for axis in range(dims):
        most = min(3, _largest_pad(mode, space[axis]))
        reach = dilation[axis] * (kernel[axis] - 1)
        if form == "valid" or space[axis] + 2 * most < reach + 1:
            most = 0 if form == "valid" else most
            step = min(dilation[axis], max(1, space[axis] - 1))
            size = min(kernel[axis], (space[axis] + 2 * most - 1) // step + 1)
            kernel = (*kernel[:axis], size, *kernel[axis + 1 :])
            dilation = (*dilation[:axis], step, *dilation[axis + 1 :])
            reach = step * (size - 1)
        needed.append(max(0, math.ceil((reach + 1 - space[axis]) / 2)))
        allowed.append(most)
    padding: Any
    if form == "valid":
        padding = "valid"
    elif form == "int" and max(needed) <= min(allowed):
        padding = draw(st.integers(max(needed), min(allowed)))
    else:
        padding = tuple(draw(st.integers(low, high)) for low, high in zip(needed, allowed, strict=True))
    return Geometry(inputs, outputs, kernel, stride, dilation, padding, mode, groups, bias, False, zero, space)


def _drawn(draw: st.DrawFn, dims: int, largest: int, *, uniform: bool) -> tuple[int, ...]:
    if uniform:
        return (draw(st.integers(1, largest)),) * dims
    return tuple(draw(st.integers(1, largest)) for _ in range(dims))


def _largest_pad(mode: str, size: int) -> int:
    return {"zeros": 3, "replicate": 3, "circular": size, "reflect": size - 1}[mode]


def _shrunk_to(
    kernel: tuple[int, ...], dilation: tuple[int, ...], space: tuple[int, ...], mode: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A kernel whose "same" padding the mode can give: reflection has only `size - 1` numbers to offer."""
    sizes, steps = [], []
    for k, d, size in zip(kernel, dilation, space, strict=True):
        most = {"zeros": 99, "replicate": 99}.get(mode, _largest_pad(mode, size))
        while math.ceil(d * (k - 1) / 2) > most:
            k, d = (k, d - 1) if d > 1 else (k - 1, d)
        sizes.append(k)
        steps.append(d)
    return tuple(sizes), tuple(steps)


@dataclass(frozen=True)
class Block:
    """A convolution, its norm, an activation; perhaps with a residual link, perhaps run twice."""

    geometry: Geometry
    norm: Norm
    in_place: bool
    residual: bool = False
    twice: bool = False


@dataclass(frozen=True)
class Plan:
    """A whole network, printable when it fails."""

    blocks: tuple[Block, ...]
    classes: int
    dropout: bool
    seed: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Two images of the size that the first layer fits."""
        first = self.blocks[0].geometry
        return (2, first.in_channels, *first.space)

    def build(self, dtype: torch.dtype = torch.float32) -> RandomNetwork:
        """The network in evaluation mode, with running statistics that are not the initial ones."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return RandomNetwork(self).to(dtype).eval()

    def example(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """An input."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.input_shape, generator=generator, dtype=torch.float64).to(dtype)


@st.composite
def plans(draw: st.DrawFn, *, norms: tuple[Norm, ...] = ("batch", "batch", "group", "layer", "none")) -> Plan:
    """One to three blocks of free geometry, then perhaps a residual block and a block that runs twice."""
    dims = draw(st.sampled_from([2, 2, 2, 1, 3]))
    blocks = [Block(draw(geometries(dims=dims)), draw(st.sampled_from(norms)), draw(st.booleans()))]
    for _ in range(draw(st.integers(0, 1))):
        last = blocks[-1].geometry
        space = last.out_space
        turned = False if max(space) > LARGEST_SPACE[dims] else None
        free = geometries(dims=dims, in_channels=last.out_channels, space=space, transposed=turned)
        blocks.append(Block(draw(free), draw(st.sampled_from(norms)), draw(st.booleans())))
    for _ in range(draw(st.integers(0, 2))):
        last = blocks[-1].geometry
        channels, space = last.out_channels, last.out_space
        kernel = (draw(st.sampled_from([1, 3])),) * dims
        groups = draw(st.sampled_from([1, channels]))
        one, zero = (1,) * dims, (0,) * dims
        kept = Geometry(
            channels, channels, kernel, one, one, "same", "zeros", groups, draw(st.booleans()), False, zero, space
        )
        twice = draw(st.booleans())
        norm = draw(st.sampled_from(norms))
        blocks.append(Block(kept, norm, draw(st.booleans()), residual=not twice, twice=twice))
    return Plan(tuple(blocks), draw(st.integers(1, 5)), draw(st.booleans()), draw(st.integers(0, 2**20)))


class RandomNetwork(nn.Module):
    """What a plan says."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_Stage(block) for block in plan.blocks)
        self.dropout = nn.Dropout(0.3) if plan.dropout else nn.Identity()
        self.classifier = nn.Linear(plan.blocks[-1].geometry.out_channels, plan.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `(batch, classes)`."""
        for stage in self.stages:
            x = stage(x)
        return self.classifier(self.dropout(x.flatten(2).mean(2)))


class _Stage(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = block.geometry.build()
        self.norm = _norm(block)
        self.activation = nn.ReLU(inplace=True) if block.in_place else nn.GELU()
        self.residual, self.twice = block.residual, block.twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.conv(x)))
        if self.twice:
            y = self.activation(self.norm(self.conv(y)))
        return y + x if self.residual else y


def _norm(block: Block) -> nn.Module:
    channels, space = block.geometry.out_channels, block.geometry.out_space
    if block.norm == "none":
        return nn.Identity()
    if block.norm == "group":
        layer: nn.Module = nn.GroupNorm(math.gcd(channels, 2), channels)
    elif block.norm == "layer":
        layer = nn.LayerNorm((channels, *space))
    else:
        layer = BATCH_NORMS[len(space)](channels)
        nn.init.normal_(layer.running_mean, std=0.3)
        nn.init.uniform_(layer.running_var, 0.5, 1.5)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias, std=0.3)
    return layer


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of every adapter, with its path."""
    for path, layer in adapted_layers(model):
        for name, tensor in itertools.chain(slots_of(layer).named_parameters(), slots_of(layer).named_buffers()):
            yield f"{path}:{name}", tensor


def randomise(model: nn.Module, seed: int = 0, *, name: str = "") -> nn.Module:
    """Perturb every adapter tensor (standard deviation 0.1), or those of one adapter.

    Variances stay positive, counters are left alone.
    """
    perturb((each for each in adapter_tensors(model) if not name or f":{name}:" in each[0]), seed)
    return model


def perturb(tensors: Iterable[tuple[str, Tensor]], seed: int) -> None:
    """Noise of standard deviation 0.1 on every tensor; variances stay positive, counters are left alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            noise = 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            if path.endswith("running_var"):
                tensor.mul_(noise.exp())
            else:
                tensor.add_(noise)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max|a - b| / max|b|, in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
