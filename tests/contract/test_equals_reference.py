"""C02: an adapted layer is its numpy formula under an independent convolution; merged is adapted."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import (
    MAPS,
    METHODS,
    attach_anything,
    holds_branch,
    is_branch,
    methods_for,
    options_for,
    reference_of,
)
from contract.networks import Geometry, Plan, adapter_tensors, geometries, plans, randomise, relative_error
from measuring import counted, measured
from reference import normalisation
from reference.convolution import canonical, convolution, linear, transposed_convolution

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C02"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

# promises.md: 1e-5 in float32 (some hundred roundings of 6e-8 over one layer), 1e-12 in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Two group norms, one after the other, multiply the roundings of maps with a few nearly equal numbers.
LOOSER = {"lite-residual": 100.0}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_close(what: str, found: Tensor, expected: Tensor, *, looser: float = 1.0) -> None:
    """The relative error stays within the promise, and is noted for its page."""
    error = relative_error(found, expected)
    precision = str(found.dtype).removeprefix("torch.")
    counted(f"comparisons of a {what} in {precision}, over all methods")
    measured(f"largest relative error of a {what} in {precision}", error)
    assert error <= TOLERANCE[found.dtype] * looser


def as_numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().numpy()


def tensors_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The adapter tensors of a model with one adapted layer, by their own short names."""
    return {name.rpartition(".")[2]: as_numpy(tensor) for name, tensor in adapter_tensors(model)}


def complete(method: str, options: dict) -> dict:
    return {option.name: option.default for option in convpeft.method_info(method).options} | options


def new_tensors(
    method: str, weight: np.ndarray, bias: np.ndarray | None, tensors: dict[str, np.ndarray], options: dict, groups: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The method's formula; a learned scale multiplies what it adds."""
    complete_options = complete(method, options) | {"groups": groups}
    new_weight, new_bias = reference_of(method).new_tensors(weight, bias, tensors, complete_options)
    if "learned_scale" not in tensors:
        return new_weight, new_bias
    scale = float(tensors["learned_scale"][0])
    old_bias = np.zeros(weight.shape[0]) if bias is None and new_bias is not None else bias
    return weight + scale * (new_weight - weight), None if new_bias is None else old_bias + scale * (
        new_bias - old_bias
    )


def oracle(geometry: Geometry, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    dims = len(geometry.kernel)
    padding = geometry.padding if not isinstance(geometry.padding, int) else (geometry.padding,) * dims
    common = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": geometry.groups}
    if geometry.transposed:
        return transposed_convolution(
            x, weight, bias, padding=padding, output_padding=geometry.output_padding, **common
        )
    return convolution(x, weight, bias, padding=padding, padding_mode=geometry.padding_mode, **common)


def as_dict(geometry: Geometry) -> dict:
    """What a reference is told of a convolution."""
    dims = len(geometry.kernel)
    padding = (geometry.padding,) * dims if isinstance(geometry.padding, int) else geometry.padding
    return dataclasses.asdict(geometry) | {"padding": padding}


def attach_or_skip(layer: nn.Module, method: str, **arguments: object) -> None:
    """Attach, or draw another layer: this one has no bias to train or is too small for rank 1."""
    try:
        convpeft.attach(layer, method, **arguments)
    except convpeft.OptionError as error:
        assert "finds no layer" in str(error)
        assume(False)


@given(geometry=geometries(), seed=st.integers(0, 2**20))
def test_oracle_agrees_with_torch_on_a_plain_layer(geometry: Geometry, seed: int) -> None:
    torch.manual_seed(seed)
    layer = geometry.build().double()
    x = torch.randn(2, geometry.in_channels, *geometry.space, dtype=torch.float64)
    weight = layer.weight.detach().numpy()
    weight = canonical(weight, geometry.groups) if geometry.transposed else weight
    expected = torch.from_numpy(oracle(geometry, x.numpy(), weight, as_numpy(layer.bias)))
    assert expected.shape[2:] == torch.Size(geometry.out_space)
    assert relative_error(layer(x), expected) <= TOLERANCE[torch.float64]


@DTYPES
@pytest.mark.parametrize("method", methods_for("conv"))
@given(geometry=geometries(), data=st.data(), seed=st.integers(0, 2**20))
def test_adapted_convolution_equals_the_reference(
    dtype: torch.dtype, method: str, geometry: Geometry, data: st.DataObject, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = geometry.build().to(dtype).eval()
    x = torch.randn(2, geometry.in_channels, *geometry.space, dtype=dtype)
    weight, bias = as_numpy(layer.weight), as_numpy(layer.bias)
    weight = canonical(weight, geometry.groups) if geometry.transposed else weight
    options = data.draw(options_for(method))
    attach_or_skip(layer, method, include=["conv"], norm="frozen", **options)
    randomise(layer, seed)
    given = x.double().numpy()
    if is_branch(method, options):
        output = oracle(geometry, given, weight, bias)
        settings = complete(method, options) | {"groups": geometry.groups}
        formula = reference_of(method).new_output
        expected = torch.from_numpy(formula(given, output, tensors_of(layer), settings, as_dict(geometry)))
    else:
        new = new_tensors(method, weight, bias, tensors_of(layer), options, geometry.groups)
        expected = torch.from_numpy(oracle(geometry, given, *new))
    assume(float(expected.abs().max()) > 0.02)  # a sum that cancels has no relative error to speak of
    what = "convolution" if method not in LOOSER else f"convolution with {method}"
    assert_close(what, layer(x), expected, looser=LOOSER.get(method, 1.0))


@DTYPES
@pytest.mark.parametrize("method", methods_for("linear"))
@given(data=st.data(), seed=st.integers(0, 2**20), bias=st.booleans())
def test_adapted_linear_layer_equals_the_reference(
    dtype: torch.dtype, method: str, data: st.DataObject, seed: int, bias: bool
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(data.draw(st.integers(4, 12)), data.draw(st.integers(4, 12)), bias=bias).to(dtype).eval()
    x = torch.randn(3, layer.in_features, dtype=dtype)
    before = as_numpy(layer.weight), as_numpy(layer.bias)
    options = data.draw(options_for(method))
    attach_or_skip(layer, method, include=["linear"], **options)
    randomise(layer, seed)
    new = new_tensors(method, *before, tensors_of(layer), options, 1)
    assert_close("linear layer", layer(x), torch.from_numpy(linear(x.double().numpy(), *new)))


@DTYPES
@pytest.mark.parametrize("method", methods_for("norm"))
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@given(channels=st.sampled_from([2, 4, 6]), size=st.integers(2, 5), seed=st.integers(0, 2**20))
def test_adapted_norm_equals_the_reference(
    dtype: torch.dtype, method: str, kind: str, channels: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, channels, size, size, dtype=dtype)
    if kind == "batch":
        layer: nn.Module = nn.BatchNorm2d(channels)
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    elif kind == "group":
        layer = nn.GroupNorm(2, channels)
    else:
        layer = nn.LayerNorm((channels, size, size))
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer = layer.to(dtype).eval()
    before = as_numpy(layer.weight), as_numpy(layer.bias)
    randomise(convpeft.attach(layer, method, include=["norm"]), seed)
    new = new_tensors(method, *before, tensors_of(layer), {}, 1)
    if kind == "batch":
        statistics = as_numpy(layer.running_mean), as_numpy(layer.running_var)
        expected = normalisation.batch_norm(as_numpy(x), *statistics, *new, layer.eps)
    elif kind == "group":
        expected = normalisation.group_norm(as_numpy(x), 2, *new, layer.eps)
    else:
        expected = normalisation.layer_norm(as_numpy(x), *new, layer.eps)
    assert_close("norm", layer(x), torch.from_numpy(expected))


@DTYPES
@pytest.mark.parametrize("method", METHODS)
@given(plan=plans(), data=st.data())
def test_merged_network_equals_the_adapted_one(
    dtype: torch.dtype, method: str, plan: Plan, data: st.DataObject
) -> None:
    model, x = plan.build(dtype), plan.example(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    norm = data.draw(st.sampled_from(convpeft.method_info(method).norm_policies))
    classes = data.draw(st.sampled_from([None, 3]))
    options = data.draw(options_for(method))
    randomise(attach_anything(model, method, norm=norm, num_classes=classes, **options), plan.seed)
    expected = model(x)
    if holds_branch(model):
        with pytest.raises(convpeft.ModelError, match="is no map of weights and cannot be merged"):
            convpeft.merge(model)
        assert torch.equal(model(x), expected)
        return
    plain = convpeft.merged(model)
    assert not any("convpeft" in key for key in plain.state_dict())
    assert_close("merged network", plain(x), expected)
    convpeft.merge(model)
    assert_close("merged network", model(x), expected)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items() if key in before)


@DTYPES
@pytest.mark.parametrize("method", MAPS)
@given(plan=plans(), data=st.data())
def test_adapted_network_equals_a_plain_one_with_reference_weights(
    dtype: torch.dtype, method: str, plan: Plan, data: st.DataObject
) -> None:
    model, x = plan.build(dtype), plan.example(dtype)
    expected = copy.deepcopy(model)
    options = data.draw(options_for(method))
    randomise(attach_anything(model, method, norm="frozen", **options), plan.seed)
    assume(not holds_branch(model))  # its oracle is that of one layer
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in adapter_tensors(model):
        path, _, rest = name.partition(":")
        parts.setdefault(path, {})[rest.rpartition(".")[2]] = as_numpy(tensor)
    for path, tensors in parts.items():
        layer = expected.get_submodule(path)
        weight, bias = as_numpy(layer.weight), as_numpy(layer.bias)
        groups = layer.groups if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
        weight = canonical(weight, groups) if groups else weight
        if set(tensors) == {"weight", "bias"}:  # trained whole by also_train
            new = reference_of("full").new_tensors(weight, bias, tensors, {})
        else:
            new = new_tensors(method, weight, bias, tensors, options, getattr(layer, "groups", 1))
        back = torch.from_numpy(np.ascontiguousarray(new[0]))
        if groups:  # the same permutation undoes itself when the two channel counts change places
            back = back.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        layer.weight.data = back.to(dtype)
        layer.bias = None if new[1] is None else nn.Parameter(torch.from_numpy(new[1]).to(dtype))
    # The two round differently in the last place and a norm over few numbers multiplies that.
    assert_close("whole network with the reference's weights", model(x), expected(x), looser=100.0)


def test_every_method_has_a_reference() -> None:
    for method in METHODS:
        reference = reference_of(method)
        assert callable(reference.new_tensors if method in MAPS else reference.new_output)
