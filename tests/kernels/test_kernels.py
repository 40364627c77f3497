"""Every kernel is the definition: output and all gradients, in float64, over the geometries of the contract."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import METHODS, attach_anything, options_for
from contract.networks import Geometry, Plan, geometries, plans, randomise, relative_error
from convpeft.adapters import method_class
from convpeft.kernels import running
from convpeft.low_rank import LowRank
from measuring import counted, measured

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C02"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

PRODUCTS = tuple(
    method for method in METHODS for cls in [method_class(method)] if issubclass(cls, LowRank) and cls.is_product
)
TOLERANCE = 1e-9
# Where another kernel can run at all, and now and then where it cannot.
MOSTLY_ONE_GROUP = st.one_of(
    geometries(transposed=False).map(lambda geometry: dataclasses.replace(geometry, groups=1)), geometries()
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time that a cheaper kernel has really run."""
    runs: list[str] = []

    def noting(name: str, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: object) -> Tensor:
            runs.append(name)
            return own(*arguments)

        return run

    monkeypatch.setattr(running, "_RUN", {name: noting(name, own) for name, own in running._RUN.items()})
    return runs


def small_rank(method: str) -> dict[str, object]:
    return {"rank": 2} | ({"target_rank": 1.0} if method == "adalora" else {})


def with_kernel(model: nn.Module, kernel: str) -> nn.Module:
    if kernel == "default":  # with folded norms and channels last
        convpeft.set_kernels(model)
    else:
        convpeft.set_kernels(model, kernel=kernel, layout="contiguous", fold=False)
    return model.train()


def gradients(model: nn.Module, x: Tensor, seed: int) -> list[Tensor]:
    """Output, gradient of the input and of every trained tensor."""
    given = x.clone().requires_grad_()
    output = model(given)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    inputs = [given, *convpeft.trainable_parameters(model)]
    return [output, *torch.autograd.grad(output, inputs, direction, materialize_grads=True)]


def assert_equal_functions(model: nn.Module, x: Tensor, kernel: str, seed: int) -> None:
    twin = copy.deepcopy(model)
    expected = gradients(with_kernel(twin, "weight"), x, seed)
    found = gradients(with_kernel(model, kernel), x, seed)
    scale = max(float(each.detach().abs().max()) for each in expected) or 1.0  # all zero where only padding is met
    for mine, theirs in zip(found, expected, strict=True):
        error = float((mine - theirs).detach().abs().max()) / scale
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert error <= TOLERANCE
        measured("largest difference of a kernel from the definition in float64", error)
    counted("layers and networks by another kernel, over all methods")


@pytest.mark.parametrize("kernel", ["hybrid", "side", "fused", "rebuilt", "auto"])
@pytest.mark.parametrize("method", PRODUCTS)
@given(geometry=MOSTLY_ONE_GROUP, data=st.data(), seed=st.integers(0, 2**20), last=st.booleans())
def test_kernel_of_a_convolution_is_the_definition(
    kernel: str, method: str, geometry: Geometry, data: st.DataObject, seed: int, last: bool
) -> None:
    torch.manual_seed(seed)
    layer = geometry.build().double()
    try:
        convpeft.attach(layer, method, include=["conv"], **data.draw(options_for(method)))
    except convpeft.OptionError as error:
        assert "finds no layer" in str(error)
        assume(False)
    randomise(layer, seed)
    x = torch.randn(2, geometry.in_channels, *geometry.space, dtype=torch.float64)
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)
    assert_equal_functions(layer, x, kernel, seed)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("kernel", ["hybrid", "fused"])
def test_kernel_moves_over_its_input_as_the_layer_does(
    kernel: str, convolution: type[nn.Conv2d], mode: str, taken: list[str]
) -> None:
    """Few of the random geometries have neither groups nor a transposition, so that a kernel runs at all."""
    torch.manual_seed(0)
    layer = convolution(4, 6, 3, stride=2, padding=2, dilation=2, padding_mode=mode).double()
    randomise(convpeft.attach(layer, "lora", include=["conv"], rank=2))
    x = torch.randn(2, 4, *[7] * len(layer.kernel_size), dtype=torch.float64)
    assert_equal_functions(layer, x, kernel, 0)
    assert taken == [kernel]


@pytest.mark.parametrize("kernel", ["hybrid", "fused"])
@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12), (12,)], ids=str)
@pytest.mark.parametrize("method", PRODUCTS)
def test_kernel_of_a_linear_layer_is_the_definition(
    method: str, shape: tuple[int, ...], kernel: str, taken: list[str]
) -> None:
    torch.manual_seed(0)
    layer = randomise(convpeft.attach(nn.Linear(12, 9).double(), method, include=["linear"], **small_rank(method)))
    assert_equal_functions(layer, torch.randn(shape, dtype=torch.float64), kernel, 0)
    assert taken


@pytest.mark.parametrize("method", METHODS)
@given(plan=plans(), data=st.data())
def test_kernels_of_a_network_are_the_definition(method: str, plan: Plan, data: st.DataObject) -> None:
    model = plan.build(torch.float64)
    model.dropout = nn.Identity()
    norm = data.draw(st.sampled_from(convpeft.method_info(method).norm_policies))
    options = {key: value for key, value in data.draw(options_for(method)).items() if key != "dropout"}
    randomise(attach_anything(model, method, norm=norm, **options), plan.seed)
    try:
        kernel = data.draw(st.sampled_from(["default", "default", "hybrid", "side", "fused", "rebuilt"]))
        assert_equal_functions(model, plan.example(torch.float64), kernel, plan.seed)
    except ValueError as error:  # torch has no statistics of one number to offer
        assert "more than 1 value per channel" in str(error)


def layer_of_usual_size(method: str = "lora", **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1).double()
    return randomise(convpeft.attach(layer, method, include=["conv"], **small_rank(method), **arguments))


IMAGES = torch.randn(4, 64, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", PRODUCTS)
def test_cheaper_kernel_is_taken_by_itself(method: str, taken: list[str]) -> None:
    layer = layer_of_usual_size(method).train()
    layer(IMAGES)
    assert taken
    assert convpeft.kernels_of(layer).kernel == "auto"


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda layer: layer.eval(), "evaluation gives the numbers of the merged layer"),
        (lambda layer: with_kernel(layer, "weight"), "it was asked for"),
        (lambda layer: convpeft.set_active(layer, []), "nothing is active"),
        (lambda layer: convpeft.attach(layer, "bitfit", name="second", include=["conv"]), "its factors rest"),
        (
            lambda layer: convpeft.attach(convpeft.detach(layer), "lora+bitfit", include=["conv"]),
            "two maps are composed",
        ),
        (lambda layer: layer._parameters["weight"].requires_grad_(), "the weight itself is trained"),
        (lambda layer: layer.requires_grad_(False), "nothing is trained"),
    ],
)
def test_definition_is_kept_where_something_else_is_asked_of_a_layer(
    prepare: object, why: str, taken: list[str]
) -> None:
    layer = layer_of_usual_size().train()
    prepare(layer)
    layer(IMAGES)
    assert not taken, why


def test_no_gradient_no_kernel(taken: list[str]) -> None:
    layer = layer_of_usual_size().train()
    with torch.no_grad():
        layer(IMAGES)
    assert not taken


@pytest.mark.parametrize("method", ["dora", "lora"])
def test_map_that_is_no_product_keeps_the_definition(method: str, taken: list[str]) -> None:
    options = {"init": "pissa"} if method == "lora" else {}
    layer = layer_of_usual_size(method, **options).train()
    layer(IMAGES)
    assert not taken


def test_subclass_with_a_map_of_its_own_keeps_the_definition(taken: list[str]) -> None:
    lora = method_class("lora")

    class Doubled(lora):
        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            new, bias = super().forward(weight, bias)
            return 2 * new - weight, bias

    layer = layer_of_usual_size().train()
    part = next(module for module in layer.modules() if isinstance(module, lora))
    part.__class__ = Doubled
    layer(IMAGES)
    assert not taken


@pytest.mark.parametrize("kernel", ["hybrid", "fused"])
def test_second_derivatives_are_right(kernel: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1).double().train()
    with_kernel(randomise(convpeft.attach(layer, "lora", include=["conv"], rank=2)), kernel)
    names = [name for name, value in layer.named_parameters() if value.requires_grad]
    values = [dict(layer.named_parameters())[name] for name in names]

    def output(x: Tensor, *tensors: Tensor) -> Tensor:
        for value, tensor in zip(values, tensors, strict=True):
            value.data = tensor.data
        return layer(x)

    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = layer(x).square().sum()
    first = torch.autograd.grad(loss, [x, *values], create_graph=True)
    found = torch.autograd.grad(sum(each.square().sum() for each in first), [x, *values])
    with_kernel(layer, "weight")
    loss = layer(x).square().sum()
    first = torch.autograd.grad(loss, [x, *values], create_graph=True)
    expected = torch.autograd.grad(sum(each.square().sum() for each in first), [x, *values])
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) <= TOLERANCE


def test_transforms_take_the_definition_and_are_right(taken: list[str]) -> None:
    layer = layer_of_usual_size().train()
    names = [name for name, value in layer.named_parameters() if value.requires_grad]
    values = {name: dict(layer.named_parameters())[name].detach() for name in names}

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, (image.unsqueeze(0),)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, IMAGES)
    assert not taken
    for number, image in enumerate(IMAGES):
        alone = torch.autograd.grad(layer(image.unsqueeze(0)).square().sum(), convpeft.trainable_parameters(layer))
        for name, expected in zip(names, alone, strict=True):
            assert relative_error(found[name][number], expected) <= TOLERANCE
    layer(IMAGES)
    assert taken


@pytest.mark.parametrize("kernel", ["auto", "fused"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_builds_the_weight_in_float32_and_computes_in_half_precision(
    dtype: torch.dtype, kernel: str, taken: list[str]
) -> None:
    layer = with_kernel(layer_of_usual_size().float(), kernel)
    images = IMAGES.float()
    with torch.autocast("cpu", dtype=dtype):
        output = layer(images)
        output.float().square().sum().backward()
    found = [parameter.grad for parameter in convpeft.trainable_parameters(layer)]
    assert taken
    assert output.dtype == dtype
    layer.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        expected = with_kernel(layer, "weight")(images)
        expected.float().square().sum().backward()
    assert torch.equal(output, expected)
    for mine, parameter in zip(found, convpeft.trainable_parameters(layer), strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, parameter.grad) < 0.03


@pytest.mark.parametrize("kernel", ["auto", "fused"])
def test_half_precision_model_is_trained_with_float32_factors(kernel: str, taken: list[str]) -> None:
    layer = with_kernel(layer_of_usual_size().float().bfloat16(), kernel)
    output = layer(IMAGES.bfloat16())
    output.float().sum().backward()
    assert taken
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, with_kernel(layer, "weight")(IMAGES.bfloat16()))
    assert {parameter.grad.dtype for parameter in convpeft.trainable_parameters(layer)} == {torch.float32}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_of_activations_only_the_input_is_kept(layout: torch.memory_format) -> None:
    layer = layer_of_usual_size().float().to(memory_format=layout).train()
    x = IMAGES.float().contiguous(memory_format=layout)
    kept: list[int] = []
    own = {each.untyped_storage().data_ptr() for each in [*layer.parameters(), x]}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert sum(kept) <= 2 * 64 * 2  # `up` times its scale
