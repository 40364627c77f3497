"""The class swap: one test a trap of replacing a layer's class while keeping everything else it is."""

import copy
import inspect
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.fx
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.fusion import fuse_conv_bn_eval

import convpeft
from contract.networks import randomise, relative_error
from convpeft import adapters
from convpeft.injection import adapted_layers
from small_network import X, adapted, by_definition, network

FLOAT32_TOLERANCE = 1e-5  # promises.md


def move(model: nn.Module) -> None:
    """Change the adapter, as training does."""
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(0.1)


# Code that writes the effective weight back as base applies the delta twice.


@pytest.mark.promise("B07")
def test_fusion_with_a_norm_is_refused() -> None:
    model = adapted()
    with pytest.raises(convpeft.ModelError, match=r"Conv2d.weight is computed by an adapter.*convpeft\.merge"):
        fuse_conv_bn_eval(model[0], model[1])


def test_fusion_of_a_merged_model_is_right() -> None:
    model = adapted()
    expected = model(X)
    convpeft.merge(model)
    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    assert relative_error(model(X), expected) <= FLOAT32_TOLERANCE


@pytest.mark.promise("B07")
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("value", [nn.Parameter(torch.zeros(8, 3, 3, 3)), torch.zeros(8), None])
def test_assignment_to_an_adapted_tensor_is_refused(name: str, value: Tensor | None) -> None:
    model = adapted()
    expected = model(X)
    with pytest.raises(convpeft.ModelError, match=f"Conv2d.{name} is computed by an adapter and cannot be assigned"):
        setattr(model[0], name, value)
    with pytest.raises(convpeft.ModelError, match="cannot be assigned"):
        model[0].register_parameter(name, value)
    assert torch.equal(model(X), expected)


@pytest.mark.promise("B07")
@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_reparameterisation_is_right_or_refused(name: str) -> None:
    import timm
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    randomise(convpeft.attach(model, "lora", rank=2))
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    try:
        plain = reparameterize_model(model)
    except convpeft.ModelError:
        plain = reparameterize_model(convpeft.merged(model))
    assert relative_error(plain(x), expected) <= 100 * FLOAT32_TOLERANCE  # fused convolutions round differently


def test_zeroing_the_effective_weight_does_not_reach_the_base() -> None:
    for method in ("lora", "full"):
        model = adapted(method)
        model[0].weight.data.zero_()
        convpeft.detach(model)
        assert torch.equal(model[0].weight, network()[0].weight), method


def test_zeroing_the_bias_of_a_bias_adapter_does_not_reach_the_base() -> None:
    model = adapted("bitfit")
    model[0].bias.data.zero_()
    convpeft.detach(model)
    assert torch.equal(model[0].bias, network()[0].bias)


# fx, pickle and copies see the swapped class.

SUBCLASSES = [nn.Conv2d, Conv2dSame, StdConv2d, ScaledStdConv2d]


@pytest.mark.parametrize("cls", SUBCLASSES, ids=lambda cls: cls.__name__)
def test_fx_graph_follows_training(cls: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(cls(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    convpeft.attach(model, "lora")
    graph = torch.fx.symbolic_trace(model)
    before = graph(X)
    move(model)
    assert torch.equal(graph(X), by_definition(model)(X))
    assert not torch.equal(graph(X), before)


class OwnForward(nn.Conv2d):
    """A convolution of somebody's own file, which fx would look into if it were no leaf."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(2 * x, self.weight / self.weight.norm(), self.bias)


def test_fx_graph_follows_training_of_own_subclasses() -> None:
    model = convpeft.attach(nn.Sequential(OwnForward(3, 8, 3), nn.Flatten(), nn.Linear(8 * 49, 4)), "lora")
    graph = torch.fx.symbolic_trace(model)
    move(model)
    assert torch.equal(graph(X), model(X))


def test_fx_refuses_to_bake_the_weights_of_an_adapted_root() -> None:
    model = convpeft.attach(nn.Conv2d(3, 8, 3), "lora")
    with pytest.raises(convpeft.ModelError, match=r"fx traces into an adapted Conv2d.*Trace a module that contains it"):
        torch.fx.symbolic_trace(model)


class OwnParameter(nn.Module):
    """A root with a parameter of its own, as class tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gain


def test_fx_graph_of_a_root_with_its_own_parameter_follows_training_or_is_refused() -> None:
    model = convpeft.attach(OwnParameter(), "full")
    try:
        graph = torch.fx.symbolic_trace(model)
    except convpeft.ModelError as error:
        assert "fx" in str(error)
        return
    move(model)
    assert torch.equal(graph(X), model(X))


def test_adapted_root_keeps_its_signature() -> None:
    signature = inspect.signature(OwnParameter().forward)
    assert inspect.signature(convpeft.attach(OwnParameter(), "full").forward) == signature


def test_own_subclass_is_adapted_by_its_own_forward() -> None:
    layer = OwnForward(3, 8, 3)
    convpeft.attach(layer, "lora")
    randomise(layer)
    weight = layer.weight / layer.weight.norm()
    assert relative_error(layer(X), nn.functional.conv2d(2 * X, weight, layer.bias)) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("cls", SUBCLASSES, ids=lambda cls: cls.__name__)
def test_swapped_layer_is_an_instance_of_its_class(cls: Callable[..., nn.Module]) -> None:
    layer = convpeft.attach(cls(3, 8, 3), "lora")
    assert isinstance(layer, cls)
    assert type(layer).__module__.startswith("torch.nn")
    assert type(layer).__qualname__.startswith("Adapted")


def test_pickle_gives_the_same_output_and_detaches() -> None:
    model = adapted(norm="train", num_classes=3)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(X), model(X))
    assert type(twin[0]) is type(model[0])
    assert torch.equal(convpeft.detach(twin)(X), network()(X))
    assert type(twin[0]) is nn.Conv2d


def test_torch_save_round_trips_a_whole_model() -> None:
    model, buffer = adapted(), io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(X), model(X))


def test_pickle_opens_in_a_new_process(tmp_path: Path) -> None:
    model = randomise(convpeft.attach(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval(), "lora"))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "x.npy", X.numpy())
    code = """
import pickle, sys, numpy, torch
torch.set_num_threads(1)
folder = sys.argv[1]
model = pickle.load(open(folder + "/model.pickle", "rb"))
numpy.save(folder + "/y.npy", model(torch.from_numpy(numpy.load(folder + "/x.npy"))).detach().numpy())
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, timeout=120)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), model(X))


def test_deepcopy_is_independent() -> None:
    model = adapted()
    expected = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected)
    move(twin)
    convpeft.set_active(twin, [])
    assert torch.equal(model(X), expected)


def test_deepcopy_of_one_layer_is_independent() -> None:
    model = adapted()
    layer = copy.deepcopy(model[0])
    expected = layer(X)
    convpeft.set_active(model, [])
    assert torch.equal(layer(X), expected)


def test_state_dict_of_an_adapted_model_loads_into_another() -> None:
    model, other = adapted(), convpeft.attach(network(), "lora", include=["conv", "linear"])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_base_checkpoint_loads_under_its_own_keys() -> None:
    model = adapted()
    missing, unexpected = model.load_state_dict(network().state_dict(), strict=False)
    assert unexpected == []
    assert all("convpeft" in key for key in missing)


# What the property does with errors.


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as it was once the test has registered a method."""
    monkeypatch.setattr(adapters, "METHODS", dict(adapters.load_methods()))


@pytest.mark.usefixtures("toy")
def test_attribute_error_inside_a_method_is_not_hidden() -> None:
    class Broken(adapters.Adapter, name="broken"):
        broken: ClassVar[bool] = False

        def __init__(self, site: convpeft.Site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return (self.no_such_attribute if self.broken else weight + self.gain), bias

    model = convpeft.attach(network(), "broken")
    Broken.broken = True
    with pytest.raises(convpeft.ModelError, match=r"computing the adapted weight failed.*no_such_attribute"):
        _ = model[0].weight
    with pytest.raises((convpeft.ModelError, AttributeError), match="no_such_attribute"):
        model(X)


@pytest.mark.usefixtures("toy")
def test_branch_runs_beside_the_layer_and_is_never_merged() -> None:
    class Side(adapters.Branch, name="side"):
        def __init__(self, site: convpeft.Site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, output: Tensor) -> Tensor:
            return output + self.gain * x.mean()

    model = convpeft.attach(network(), "side", include=["0"])
    assert torch.equal(model(X), network()(X))
    move(model)
    assert relative_error(model[0](X), network()[0](X) + 0.1 * X.mean()) <= FLOAT32_TOLERANCE
    with pytest.raises(convpeft.ModelError, match=r"'side' at '0' is no map of weights and cannot be merged"):
        convpeft.merge(model)
    with convpeft.disabled(model):
        assert torch.equal(model(X), network()(X))


class Attention(nn.Module):
    """MultiheadAttention reads `out_proj.weight` and never calls its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_projection_is_adapted(method: str, grad: bool) -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 8)
    base_output = model(x)
    randomise(convpeft.attach(model, method))
    with torch.set_grad_enabled(grad):  # without gradients torch takes a fused path
        output = model(x)
        assert not torch.allclose(output, base_output, atol=1e-3)
        assert relative_error(convpeft.merged(model)(x), output) <= FLOAT32_TOLERANCE


@pytest.mark.usefixtures("toy")
def test_branch_on_an_attention_projection_is_refused() -> None:
    class Side(adapters.Branch, name="side"):
        def __init__(self, site: convpeft.Site) -> None:
            super().__init__(site)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, output: Tensor) -> Tensor:
            return output + self.gain

    with pytest.raises(convpeft.ModelError, match=r"out_proj.* MultiheadAttention reads its weight and never calls it"):
        convpeft.attach(Attention(), "side")


# Functional use.


def test_functional_call_uses_the_tensors_it_is_given() -> None:
    model = adapted()
    tensors = {key: value.detach().clone() for key, value in model.state_dict().items()}
    tensors["0.weight"] += 1
    changed = copy.deepcopy(model)
    changed.load_state_dict(tensors)
    assert torch.equal(functional_call(model, tensors, (X,)), changed(X))
    assert not torch.equal(functional_call(model, tensors, (X,)), model(X))


def test_vmap_runs_an_ensemble_of_adapters() -> None:
    models = [randomise(convpeft.attach(network(), "lora"), seed) for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    outputs = vmap(lambda p, b: functional_call(models[0], (p, b), (X,)))(parameters, buffers)
    for output, model in zip(outputs, models, strict=True):
        assert relative_error(output, model(X)) <= FLOAT32_TOLERANCE


def test_per_sample_gradients_by_vmap_are_right() -> None:
    model = adapted()
    key = "0.convpeft.default:lora.up"
    parameters = dict(model.named_parameters())

    def loss(up: Tensor, x: Tensor) -> Tensor:
        return functional_call(model, {**parameters, key: up}, (x[None],)).square().sum()

    each = vmap(torch.func.grad(loss), (None, 0))(parameters[key], X)
    for gradient, x in zip(each, X, strict=True):
        expected = torch.autograd.grad(model(x[None]).square().sum(), parameters[key])[0]
        assert relative_error(gradient, expected) <= FLOAT32_TOLERANCE


def test_checkpointed_activations_give_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    model = adapted().train()
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        run(X).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in convpeft.trainable_parameters(model)])
    for gradient, expected in zip(*gradients, strict=True):
        assert relative_error(gradient, expected) <= FLOAT32_TOLERANCE


def test_hooks_of_an_adapted_layer_still_fire() -> None:
    model, seen = network(), []
    model[0].register_forward_pre_hook(lambda *_: seen.append("pre"))
    model[0].register_forward_hook(lambda _, __, output: 2 * output)
    randomise(convpeft.attach(model, "lora"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    doubled = nn.functional.conv2d(X, model[0].weight, model[0].bias) * 2
    output = model[0](X.clone().requires_grad_())
    output.sum().backward()
    assert seen == ["pre", "backward"]
    assert relative_error(output, doubled) <= FLOAT32_TOLERANCE


def test_keyword_input_works() -> None:
    model = adapted()
    assert torch.equal(model[0](input=X), model[0](X))


# Weights and modules that are used more than once.


class Tied(nn.Module):
    """Two layers that share one weight, and a third that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.classifier = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.classifier(self.twice(self.twice(x)).mean((2, 3)))


@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
@pytest.mark.parametrize("include", [["conv"], ["first"], ["second"]])
def test_tied_weights_are_merged_right(method: str, include: list[str]) -> None:
    model = Tied().eval()
    randomise(convpeft.attach(model, method, include=include))
    expected = model(X)
    assert relative_error(convpeft.merged(model)(X), expected) <= FLOAT32_TOLERANCE
    assert relative_error(convpeft.merge(model)(X), expected) <= FLOAT32_TOLERANCE


def test_detach_keeps_weights_tied() -> None:
    model = convpeft.detach(convpeft.attach(Tied(), "full"))
    assert model.first.weight is model.second.weight


def test_module_used_twice_has_one_adapter() -> None:
    model = convpeft.attach(Tied(), "lora")
    assert [path for path, _ in adapted_layers(model)] == ["first", "second", "twice"]
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = convpeft.attach(nn.Sequential(shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(243, 2)), "lora")
    assert [path for path, _ in adapted_layers(model)] == ["0"]
    randomise(model)
    assert relative_error(convpeft.merged(model)(X), model(X)) <= FLOAT32_TOLERANCE


def test_effective_weight_is_built_in_full_precision_under_autocast() -> None:
    layer = randomise(convpeft.attach(nn.Conv2d(3, 8, 3), "lora", include=["conv"]))
    expected = layer.weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)
