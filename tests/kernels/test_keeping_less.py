"""Kernels that keep less for the backward pass: frozen and lean layers, masked activations, short positions."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.networks import randomise, relative_error
from convpeft.adapters import method_class
from convpeft.kernels.frozen import frozen
from convpeft.kernels.masks import Masks, Window, masked_relu, max_pool
from convpeft.kernels.operations import Convolution
from small_network import by_definition

TOLERANCE = 1e-9


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def kept_bytes(run: object, *own: Tensor) -> int:
    """Bytes that a forward keeps beside what exists anyway."""
    known = {each.untyped_storage().data_ptr() for each in own}
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 2, 2), (1, 2, 1, 4)])
def test_frozen_convolution_is_torchs(stride: int, padding: int, dilation: int, groups: int) -> None:
    x, weight = random(2, 4, 9, 8).requires_grad_(), random(8, 4 // groups, 3, 3, seed=1)
    bias = random(8, seed=2).requires_grad_()
    operation = Convolution((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    found, expected = (
        frozen(x, weight, bias, operation),
        F.conv2d(x, weight, bias, stride, padding, dilation, groups),
    )
    direction = random(*expected.shape, seed=3)
    assert relative_error(found, expected) <= TOLERANCE
    for mine, theirs in zip(
        torch.autograd.grad(found, [x, bias], direction),
        torch.autograd.grad(expected, [x, bias], direction),
        strict=True,
    ):
        assert relative_error(mine, theirs) <= TOLERANCE
    assert torch.autograd.gradgradcheck(lambda x, bias: frozen(x, weight, bias, operation) ** 2, (x, bias))
    assert kept_bytes(lambda: frozen(x, weight, bias, operation), weight) == 0
    assert kept_bytes(lambda: F.conv2d(x, weight, bias, groups=groups), weight) > 0  # PyTorch keeps the input


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("ceiling", [None, 6.0])
def test_masked_relu_is_torchs_and_keeps_a_byte_a_number(ceiling: float | None, inplace: bool) -> None:
    x = (4 * random(2, 5, 6, 7)).requires_grad_()
    own = torch.relu if ceiling is None else F.relu6
    found, expected = masked_relu(x * 1, ceiling, inplace=inplace), own(x)
    direction = random(*x.shape, seed=1)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, direction)[0] for y in (found, expected)))
    assert kept_bytes(lambda: masked_relu(x, ceiling), x) == x.numel()
    assert torch.autograd.gradgradcheck(lambda x: masked_relu(x, ceiling) ** 3, (x,))


@given(data=st.data())
def test_max_pooling_is_torchs_in_every_geometry(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(data.draw(st.integers(0, size // 2)) for size in kernel)
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    ceil = data.draw(st.booleans())
    image = data.draw(st.tuples(st.integers(8, 13), st.integers(8, 13)))
    x = random(2, 3, *image, seed=data.draw(st.integers(0, 99))).requires_grad_()
    if data.draw(st.booleans()):
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = max_pool(x, Window(kernel, stride, padding, dilation, ceil))
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    direction = random(*expected.shape, seed=1)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, direction)[0] for y in (found, expected)))


def test_max_pooling_keeps_two_bytes_a_number() -> None:
    x = random(2, 3, 16, 16).requires_grad_()
    window = Window((2, 2), (2, 2))
    assert kept_bytes(lambda: max_pool(x, window), x) == 2 * x.numel() // 4
    assert torch.autograd.gradgradcheck(lambda x: max_pool(x, window) ** 2, (x,))


def test_max_pooling_of_a_panorama_keeps_wide_positions() -> None:
    x = torch.randn(1, 1, 4, 40_000, dtype=torch.float64).requires_grad_()
    found, expected = max_pool(x, Window((3, 3), (1, 1))), F.max_pool2d(x, 3, 1)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))


WAYS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: (x * 1).relu_(),
    "relu6": F.relu6,
    "module of relu6": nn.ReLU6(inplace=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_relu_is_masked(way: str) -> None:
    x = random(2, 3, 4, 4).requires_grad_()
    with Masks(activations=True):
        kept = kept_bytes(lambda: WAYS[way](x * 1), x)
    assert kept == x.numel()
    with Masks(activations=False):
        assert kept_bytes(lambda: WAYS[way](x * 1), x) == x.numel() * 8


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((2, 3), None, 1)], ids=str)
def test_every_way_to_write_max_pooling_is_shortened(arguments: tuple[object, ...]) -> None:
    x = random(2, 3, 9, 9).requires_grad_()
    for run in (nn.MaxPool2d(*arguments), lambda x: F.max_pool2d(x, *arguments)):
        expected = run(x)
        with Masks(activations=False):
            assert torch.equal(run(x), expected)
            assert kept_bytes(lambda: run(x), x) == 2 * expected.numel()  # noqa: B023 - runs at once


def test_positions_that_are_asked_for_are_given() -> None:
    x = random(2, 3, 8, 8).requires_grad_()
    with Masks(activations=True):
        found = F.max_pool2d(x, 2, return_indices=True)
    for mine, theirs in zip(found, F.max_pool2d(x, 2, return_indices=True), strict=True):
        assert torch.equal(mine, theirs)


def test_nothing_is_masked_where_nothing_is_trained() -> None:
    x = random(2, 3, 8, 8)
    with Masks(activations=True), torch.no_grad():
        assert torch.equal(torch.relu(x), x.clamp_min(0))
        assert torch.equal(F.max_pool2d(x, 2), F.max_pool2d(x, 2, 2))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = nn.Conv2d(3, 32, 3, padding=1), nn.MaxPool2d(2)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(4))
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.stem(x)))
        for first, second in ((0, 1), (2, 3)):
            y = self.act(self.norms[first](self.convs[first](x)))
            x = self.act(self.norms[second](self.convs[second](y)) + x)
        return self.fc(x.mean((2, 3)))


IMAGES = random(4, 3, 24, 24)


def gradients(model: nn.Module) -> list[Tensor]:
    x = IMAGES.clone().requires_grad_()
    output = model(x)
    return [output, *torch.autograd.grad(output.square().sum(), [x, *convpeft.trainable_parameters(model)])]


@pytest.mark.promise("C02")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_lean_network_is_the_definition_and_keeps_a_fraction(layout: str) -> None:
    model = randomise(convpeft.attach(Residual().double(), "lora-fa", rank=2, include=["conv"])).train()
    convpeft.set_kernels(model, layout=layout)
    found = gradients(model)
    assert set(convpeft.kernels_of(model).sites.values()) == {"weight", "lean"}
    own = [*model.parameters(), *model.buffers(), IMAGES]
    lean = kept_bytes(lambda: model(IMAGES), *own)
    expected = gradients(by_definition(model))
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) <= TOLERANCE
    assert lean < 0.3 * kept_bytes(lambda: model(IMAGES), *own)


def test_network_that_keeps_inputs_anyway_masks_no_activation() -> None:
    """A byte beside the number that the next convolution keeps would be a byte more."""
    model = randomise(convpeft.attach(Residual().double(), "lora", rank=2, include=["conv"])).train()
    seen: list[torch.dtype] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(IMAGES)
    assert torch.uint8 not in seen
    assert torch.int16 in seen  # positions of the pooling


def large_layer(method: str) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 48, 3, padding=1, bias=False).double()
    return randomise(convpeft.attach(layer, method, include=["conv"])).train()


FEATURES = random(2, 48, 6, 5)


def layer_gradients(layer: nn.Module, before_backward: Callable[[], object] = lambda: None) -> list[Tensor]:
    x = FEATURES.clone().requires_grad_()
    output = layer(x)
    wanted = [x, *convpeft.trainable_parameters(layer)]
    before_backward()
    return [output, *torch.autograd.grad(output.square().sum(), wanted)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine, theirs) <= TOLERANCE


MAPS = ("dora", "loha", "lokr", "lora-c", "residual-parallel", "ssf", "glora")


@pytest.mark.parametrize("method", MAPS)
def test_map_that_is_no_product_keeps_the_input_alone(method: str) -> None:
    layer = large_layer(method)
    found = layer_gradients(layer)
    assert set(convpeft.kernels_of(layer).sites.values()) == {"rebuilt"}
    x = FEATURES.clone().requires_grad_()
    own = [*layer.parameters(), *layer.buffers(), x]
    assert kept_bytes(lambda: layer(x), *own) == 0
    by_definition(layer)
    assert kept_bytes(lambda: layer(x), *own) >= layer.weight.numel() * 8
    assert_same(found, layer_gradients(layer))


def test_weight_is_rebuilt_by_the_adapters_of_the_forward() -> None:
    """Whatever is active when the backward pass runs."""
    layer = large_layer("dora")
    expected = layer_gradients(by_definition(copy.deepcopy(layer)))
    assert_same(layer_gradients(layer, lambda: convpeft.set_active(layer, [])), expected)
    convpeft.set_active(layer, ["default"])
    with convpeft.disabled(layer):
        pass
    assert_same(layer_gradients(layer), expected)


def test_weight_that_changed_since_the_forward_is_refused() -> None:
    layer = large_layer("dora")

    def step() -> None:
        with torch.no_grad():
            for parameter in convpeft.trainable_parameters(layer):
                parameter.add_(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer_gradients(layer, step)


def test_second_derivatives_of_a_rebuilt_layer_are_right() -> None:
    found = []
    layer = large_layer("dora")
    for each in (layer, by_definition(copy.deepcopy(layer))):
        wanted = [FEATURES.clone().requires_grad_(), *convpeft.trainable_parameters(each)]
        first = torch.autograd.grad(each(wanted[0]).square().sum(), wanted, create_graph=True)
        found.append(list(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), wanted)))
    assert_same(*found)


def test_rebuilt_layer_under_autocast_builds_in_float32() -> None:
    layer = large_layer("dora").float()
    for each in layer.modules():
        each.float()
    outputs = []
    for run in (layer, by_definition(copy.deepcopy(layer))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = run(FEATURES.float())
        output.float().square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    assert {parameter.grad.dtype for parameter in convpeft.trainable_parameters(layer)} == {torch.float32}


def test_adapter_of_somebody_else_is_not_run_twice() -> None:
    """It may change something each time it runs."""
    layer = large_layer("dora")
    part = next(module for module in layer.modules() if type(module) is method_class("dora"))

    class Counting(method_class("dora")):
        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            self.__dict__["runs"] = self.__dict__.get("runs", 0) + 1
            return super().forward(weight, bias)

    part.__class__ = Counting
    layer_gradients(layer)
    assert part.runs == 1
    assert set(convpeft.kernels_of(layer).sites.values()) == {"weight"}
