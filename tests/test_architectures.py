"""Methods on public architectures: attach, train, merge, save, reload and detach, each exactly."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convpeft
from architectures.networks import EIGHT, NETWORKS, images, network
from contract.methods_under_test import METHODS, train_steps
from contract.networks import relative_error
from convpeft.injection import adapted_layers
from convpeft.slots import slots_of
from measuring import times

pytestmark = pytest.mark.architectures

# The merged weight is the one the adapter computed; should it choose another kernel, the layers round differently.
MERGED_TOLERANCE = 1e-5
# What three steps change of the output at least, at a method's own learning rate; a merge that lost it would show.
SMALLEST_EFFECT = 1e-3
ON_ALL = ("bitfit", "dora", "lora")
FEW = (
    "timm/vgg11",
    "torchvision/resnet18",
    "timm/ecaresnext26t_32x4d",
    "torchvision/googlenet",
    "timm/mobilenetv4_conv_small_050",
    "timm/tf_efficientnetv2_b0",
    "torchvision/shufflenet_v2_x0_5",
    "timm/ghostnet_050",
    "timm/dla46_c",
    "timm/mobilevit_xxs",
)
TWENTY = NETWORKS[::2]

# Methods that have nowhere to sit, with what they say about it.
IMPOSSIBLE = {
    ("norm-tuning", "timm/vgg11"): "finds no layer to adapt",
    ("norm-tuning", "timm/nf_resnet26"): "finds no layer to adapt",
    ("norm-tuning", "torchvision/squeezenet1_1"): "finds no layer to adapt",
}

Pair = tuple[str, str]  # (method, architecture)


def every_pair() -> list[Pair]:
    """The three methods everywhere and every method on the eight, architecture by architecture."""
    return [
        (method, source)
        for source in dict.fromkeys((*EIGHT, *NETWORKS))
        for method in (METHODS if source in EIGHT else ON_ALL)
        if (method, source) not in IMPOSSIBLE
    ]


def few_pairs() -> list[Pair]:
    """LoRA on ten architectures, and each method on one of the eight in turn."""
    turns = [(method, EIGHT[number % len(EIGHT)]) for number, method in enumerate(METHODS)]
    possible = [pair if pair not in IMPOSSIBLE else (pair[0], "timm/resnet18") for pair in turns]
    return sorted([*(("lora", source) for source in FEW), *possible], key=lambda pair: pair[1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All of it when asked for by the marker, otherwise what takes less than a minute."""
    whole = metafunc.config.getoption("markexpr") == "architectures"
    if "trained" in metafunc.fixturenames:
        pairs = every_pair() if whole else few_pairs()
        metafunc.parametrize("trained", pairs, indirect=True, scope="module", ids=["-".join(pair) for pair in pairs])
    if "one_of_twenty" in metafunc.fixturenames:
        twenty = whole or times(full=1, reduced=0)
        metafunc.parametrize("one_of_twenty", TWENTY if twenty else ["timm/mobilenetv3_small_050"])


@dataclass(frozen=True)
class Trained:
    """An architecture, and a copy of it with a method on it that took three steps."""

    method: str
    base: nn.Module
    model: nn.Module
    x: Tensor
    fresh: Tensor  # with the base's own head
    start: Tensor
    output: Tensor
    idle: list[str]


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest) -> Trained:
    method, source = request.param
    base, x = network(source), images(source)
    model = copy.deepcopy(base)
    classes = 3 if (METHODS.index(method) + NETWORKS.index(source)) % 2 else None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        convpeft.attach(model, method, num_classes=classes, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), convpeft.old_head(model):
            fresh = model(x)
        start = output(model, x)
        idle = train(model, x)
    return Trained(method, base, model, x, fresh, start, output(model, x), idle)


def train(model: nn.Module, x: Tensor) -> list[str]:
    """Three steps as a training loop takes them; returns the layers that they left as they were."""
    before = copy.deepcopy(adapters(model))
    train_steps(model, x, torch.optim.AdamW(convpeft.param_groups(model)), 3)
    model.eval()
    after = adapters(model)
    return [path for path in after if all(torch.equal(after[path][key], before[path][key]) for key in after[path])]


def adapters(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Every tensor that the adapters hold, layer by layer."""
    found = {path: slots_of(layer).state_dict() for path, layer in adapted_layers(model)}
    return {path: tensors for path, tensors in found.items() if tensors}  # a frozen norm holds none


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), key


def types_of(model: nn.Module) -> list[tuple[str, type]]:
    return [(path, type(module)) for path, module in model.named_modules()]


@pytest.mark.promise("C01")
def test_fresh_adapter_changes_no_bit_of_the_output(trained: Trained) -> None:
    assert torch.equal(trained.fresh, output(trained.base, trained.x))


def test_training_reaches_every_adapted_layer(trained: Trained) -> None:
    assert trained.idle == []
    assert torch.isfinite(trained.output).all()
    assert relative_error(trained.output, trained.start) > SMALLEST_EFFECT


@pytest.mark.promise("C04")
def test_training_leaves_the_base_alone(trained: Trained) -> None:
    state = {key: value for key, value in trained.model.state_dict().items() if "convpeft" not in key.split(".")}
    assert_same_bits(state, dict(trained.base.state_dict()))


@pytest.mark.promise("C02")
def test_merged_gives_the_adapted_output(trained: Trained) -> None:
    if convpeft.method_info(trained.method).mergeable == "never":
        before = copy.deepcopy(trained.model.state_dict())
        with pytest.raises(convpeft.ModelError, match="is no map of weights and cannot be merged"):
            convpeft.merge(trained.model)
        assert_same_bits(trained.model.state_dict(), before)
        assert torch.equal(output(trained.model, trained.x), trained.output)
        return
    merged = convpeft.merged(trained.model)
    assert relative_error(output(merged, trained.x), trained.output) <= MERGED_TOLERANCE
    assert types_of(merged) == types_of(trained.base)


@pytest.mark.promise("C05")
def test_reloaded_gives_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    convpeft.save(trained.model, tmp_path / "adapter")
    loaded = convpeft.load(copy.deepcopy(trained.base), tmp_path / "adapter")
    assert torch.equal(output(loaded, trained.x), trained.output)


@pytest.mark.promise("C03")
def test_detached_is_the_base(trained: Trained) -> None:
    model = convpeft.detach(copy.deepcopy(trained.model))
    assert_same_bits(dict(model.state_dict()), dict(trained.base.state_dict()))
    assert types_of(model) == types_of(trained.base)
    assert torch.equal(output(model, trained.x), output(trained.base, trained.x))


@pytest.mark.parametrize(("method", "source"), IMPOSSIBLE)
def test_method_with_nowhere_to_sit_says_so_and_leaves_the_model_alone(method: str, source: str) -> None:
    model = copy.deepcopy(network(source))
    with pytest.raises(convpeft.ConvpeftError, match=IMPOSSIBLE[method, source]):
        convpeft.attach(model, method)
    assert types_of(model) == types_of(network(source))
    assert_same_bits(dict(model.state_dict()), dict(network(source).state_dict()))
    convpeft.attach(model, method, num_classes=3)
    assert set(convpeft.count(model).layers) == {convpeft.sites.find_head(network(source))}


@pytest.mark.promise("C01")
def test_no_fresh_adapter_changes_a_bit_of_the_output(one_of_twenty: str) -> None:
    model, x = copy.deepcopy(network(one_of_twenty)), images(one_of_twenty)
    expected = output(model, x)
    for method in METHODS:
        if (method, one_of_twenty) in IMPOSSIBLE:
            continue
        convpeft.attach(model, method, generator=torch.Generator().manual_seed(1))
        assert torch.equal(output(model, x), expected), method
        convpeft.detach(model)
        assert torch.equal(output(model, x), expected), method


@pytest.mark.parametrize("method", ON_ALL)
def test_network_that_segments_is_adapted_and_merged(method: str) -> None:
    model, x = copy.deepcopy(network("own/unet")), images("own/unet")
    model.whole = False
    expected = output(model, x)
    convpeft.attach(model, method, include=["transposed", "join1"], generator=torch.Generator().manual_seed(1))
    layers = set(convpeft.count(model).layers)
    assert {"up1", "up2"} < layers
    assert all(path.startswith(("up", "join1.")) for path in layers)
    train(model, x)
    adapted = output(model, x)
    assert adapted.shape == expected.shape == (2, 5, 32, 32)
    assert relative_error(adapted, expected) > SMALLEST_EFFECT
    assert relative_error(output(convpeft.merged(model), x), adapted) <= MERGED_TOLERANCE
    assert torch.equal(output(convpeft.detach(model), x), expected)


def test_there_are_forty_architectures() -> None:
    assert len(set(NETWORKS)) == 40
    assert set(EIGHT) | set(FEW) <= set(NETWORKS)
