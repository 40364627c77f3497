"""C09: active names are an ordered composition; a beginning of it can be merged; any string is a name."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import convpeft
from contract.methods_under_test import FEWER, METHODS, attach_anything
from contract.networks import Plan, plans, randomise, relative_error
from convpeft.adapters import Branch
from convpeft.injection import adapted_layers
from convpeft.slots import slots_of

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C09"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

FLOAT32_TOLERANCE = 1e-5  # promises.md


def network() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    layers = (nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 4))
    return nn.Sequential(*layers).eval()


def with_adapters(*methods: str) -> nn.Module:
    """A network with randomised adapters a, b, c, ... of these methods."""
    model = network()
    for name, method in zip("abc", methods, strict=False):
        randomise(convpeft.attach(model, method, name=name), ord(name), name=name)
    return model


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def test_active_order_matters_for_methods_that_do_not_commute() -> None:
    model = with_adapters("lora", "full")
    assert not torch.equal(model(X), with_adapters("lora")(X))
    convpeft.set_active(model, ["b", "a"])
    turned = model(X)
    convpeft.set_active(model, ["a", "b"])
    assert not torch.equal(model(X), turned)


def test_sums_of_low_rank_updates_add_up() -> None:
    model = with_adapters("lora", "lora")
    base = network()[0].weight
    both = model[0].weight - base
    convpeft.set_active(model, "a")
    first = model[0].weight - base
    convpeft.set_active(model, ["b"])
    second = model[0].weight - base
    assert torch.allclose(both, first + second, atol=1e-6)


@FEWER
@given(plan=plans(), methods=st.lists(st.sampled_from(METHODS), min_size=2, max_size=3), cut=st.integers(1, 2))
def test_merging_a_beginning_leaves_the_output_and_the_rest(plan: Plan, methods: list[str], cut: int) -> None:
    model, x = plan.build(), plan.example()
    names = [f"adapter {number}" for number in range(len(methods))]
    for name, method in zip(names, methods, strict=True):
        randomise(attach_anything(model, method, name=name), name=name)
    expected = model(x)
    first = (part for _, layer in adapted_layers(model) for part in slots_of(layer).active(tuple(names[:cut])))
    if any(isinstance(part, Branch) for part in first):
        with pytest.raises(convpeft.ModelError, match="cannot be merged"):
            convpeft.merge(model, names[:cut])
        assert torch.equal(model(x), expected)
        return
    convpeft.merge(model, names[:cut])
    assert relative_error(model(x), expected) <= FLOAT32_TOLERANCE
    with pytest.raises(convpeft.ConvpeftError):
        convpeft.detach(model, names[0])


def test_merging_out_of_order_is_refused_where_methods_do_not_commute() -> None:
    model = with_adapters("full", "lora")
    expected, keys = model(X), list(model.state_dict())
    with pytest.raises(convpeft.OptionError, match=r"\['b'\] do not come first in the active order \['a', 'b'\]"):
        convpeft.merge(model, ["b"])
    assert torch.equal(model(X), expected)
    assert list(model.state_dict()) == keys


def test_merging_out_of_order_is_right_where_methods_only_add() -> None:
    model = with_adapters("lora", "bitfit", "lora")
    expected = model(X)
    convpeft.merge(model, "b")
    assert relative_error(model(X), expected) <= FLOAT32_TOLERANCE
    convpeft.merge(model, ["c"])
    assert relative_error(model(X), expected) <= FLOAT32_TOLERANCE


def test_merging_an_inactive_adapter_is_refused() -> None:
    model = with_adapters("lora", "lora")
    convpeft.set_active(model, "a")
    with pytest.raises(
        convpeft.OptionError, match=r"'b' is not active, so merging it would change the output\. Call set_active first"
    ):
        convpeft.merge(model, ["b"])


def test_merged_copy_has_the_active_adapters_only() -> None:
    model = with_adapters("lora", "bitfit")
    convpeft.set_active(model, "b")
    plain = convpeft.merged(model)
    assert relative_error(plain(X), model(X)) <= FLOAT32_TOLERANCE
    assert not any("convpeft" in key for key in plain.state_dict())


def test_merge_of_nothing_active_keeps_every_adapter() -> None:
    model = with_adapters("lora")
    convpeft.set_active(model, [])
    convpeft.merge(model)
    assert torch.equal(model(X), network()(X))
    convpeft.set_active(model, "a")
    assert torch.equal(model(X), with_adapters("lora")(X))


def test_own_heads_of_two_adapters_give_their_own_classes() -> None:
    model = network()
    convpeft.attach(model, "lora", name="five", num_classes=5)
    convpeft.attach(model, "lora", name="nine", num_classes=9)
    assert model(X).shape == (2, 9)
    convpeft.set_active(model, "five")
    assert model(X).shape == (2, 5)
    convpeft.set_active(model, [])
    assert model(X).shape == (2, 4)


@pytest.mark.parametrize("method", ["bitfit", "full", "lora"])
def test_adapter_on_the_new_head_of_another_keeps_its_classes_or_is_refused(method: str) -> None:
    model = convpeft.attach(network(), "probe", name="first", num_classes=7)
    expected = model(X)
    try:
        convpeft.attach(model, method, name="second", include=["conv", "linear"])
    except convpeft.ConvpeftError as error:
        assert "\n" not in str(error)
    assert torch.equal(model(X), expected)


ODD_NAMES = ["", ".", "a.b", "a:b", "a:", ":", "%2E", "%", "é ü 漢", "../x", "\n", "a b", "convpeft", "\0"]
NAMES = [*ODD_NAMES, "x" * 300, "default"]


def test_any_string_is_a_name() -> None:
    model = network()
    outputs = {}
    for number, name in enumerate(NAMES):
        randomise(convpeft.attach(model, "lora", name=name), number, name="")
        convpeft.set_active(model, name)
        outputs[name] = None
    for name in NAMES:
        convpeft.set_active(model, [name])
        outputs[name] = model(X)
    assert all(not torch.equal(outputs[a], outputs[b]) for a, b in itertools.combinations(NAMES, 2))
    for name in NAMES[:-1]:
        convpeft.detach(model, name)
    convpeft.set_active(model, NAMES[-1])
    assert torch.equal(model(X), outputs[NAMES[-1]])
    assert len(set(model.state_dict())) == len(model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_adapters_of_any_name_are_found_by_their_path(name: str) -> None:
    model = convpeft.attach(network(), "lora", name=name)
    for path, module in model.named_modules():
        assert model.get_submodule(path) is module


@settings(FEWER, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=st.text(max_size=20))
def test_an_adapter_of_any_name_is_saved_and_loaded(tmp_path: Path, name: str) -> None:
    model = randomise(convpeft.attach(network(), "lora", name=name))
    convpeft.save(model, tmp_path / "adapter", name=name)
    loaded = convpeft.load(network(), tmp_path / "adapter", name=name)
    assert torch.equal(loaded(X), model(X))
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_loading_under_two_names_composes(tmp_path: Path) -> None:
    for name, method in (("one", "lora"), ("two", "bitfit")):
        convpeft.save(randomise(convpeft.attach(network(), method)), tmp_path / name)
    model = convpeft.load(network(), tmp_path / "one", name="one")
    convpeft.load(model, tmp_path / "two", name="two")
    delta = model[0].bias - network()[0].bias
    convpeft.set_active(model, "two")
    assert torch.equal(model[0].bias - network()[0].bias, delta)
    with pytest.raises(convpeft.OptionError, match="'one' is in use"):
        convpeft.load(model, tmp_path / "one", name="one")


def test_second_adapter_is_the_only_one_that_trains() -> None:
    model = with_adapters("lora", "lora")
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("convpeft.b:" in key for key in trainable)


def test_unknown_and_repeated_names_are_refused() -> None:
    model = with_adapters("lora", "lora")
    with pytest.raises(convpeft.OptionError, match=r"no adapter is called 'c'.*Known: a, b"):
        convpeft.set_active(model, ["c"])
    with pytest.raises(convpeft.OptionError, match="holds a name twice"):
        convpeft.set_active(model, ["a", "a"])
    with pytest.raises(convpeft.OptionError, match="'a' is in use"):
        convpeft.attach(model, "lora", name="a")


def test_disabled_restores_the_order_after_an_error() -> None:
    model = with_adapters("lora", "full")
    convpeft.set_active(model, ["b", "a"])
    expected = model(X)
    with pytest.raises(ZeroDivisionError), convpeft.disabled(model):
        raise ZeroDivisionError
    assert torch.equal(model(X), expected)


def test_last_active_adapter_acts_on_what_the_others_have_made() -> None:
    model = with_adapters("lora", "full")
    convpeft.set_active(model, "b")
    alone = model(X)
    convpeft.set_active(model, ["a", "b"])
    assert torch.equal(model(X), alone)  # `full` puts its own weights in the place of what it is given
    convpeft.set_active(model, ["b", "a"])
    assert not torch.equal(model(X), alone)


def test_adapter_on_top_of_one_that_goes_by_the_batch_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).train()
    convpeft.attach(model, "lora", name="a")
    convpeft.attach(model, "residual-serial", name="b")
    images = torch.randn(4, 3, 8, 8)
    model(images)
    convpeft.set_active(model, ["b", "a"])
    with pytest.raises(convpeft.ModelError) as refusal:
        model(images)
    assert str(refusal.value) == (
        "method 'lora' acts on top of 'residual-serial', which is in training and normalises what comes before. "
        "Attach or activate them in the other order."
    )
