"""C03: `disabled`, `detach` and `merged` copies leave the base as it was."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import (
    AT_MOST_200,
    MAPS,
    METHODS,
    attach_anything,
    holds_branch,
    options_for,
    train_steps,
)
from contract.networks import Plan, plans, randomise
from measuring import counted

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C03"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

CYCLES = 100


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) and state[key].dtype == before[key].dtype for key in before)


def types_of(model: nn.Module) -> list[tuple[str, type]]:
    return [(path, type(module)) for path, module in model.named_modules()]


@pytest.mark.parametrize("method", METHODS)
@AT_MOST_200
@given(plan=plans(), data=st.data())
def test_disabled_gives_the_base_output(method: str, plan: Plan, data: st.DataObject) -> None:
    model, x = plan.build(), plan.example()
    expected = model(x)
    classes = data.draw(st.sampled_from([None, 7]))
    norm = data.draw(st.sampled_from(convpeft.method_info(method).norm_policies))
    options = data.draw(options_for(method))
    randomise(attach_anything(model, method, num_classes=classes, norm=norm, **options))
    adapted = model(x)
    with convpeft.disabled(model):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), adapted)
    counted("random networks disabled, over all methods")


@pytest.mark.parametrize("method", METHODS)
@AT_MOST_200
@given(plan=plans(), data=st.data())
def test_detach_gives_the_base_back(method: str, plan: Plan, data: st.DataObject) -> None:
    model, x = plan.build(), plan.example()
    model.stages[0].requires_grad_(data.draw(st.booleans()))
    before, types, expected = snapshot(model), types_of(model), model(x)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    classes = data.draw(st.sampled_from([None, 7]))
    norm = data.draw(st.sampled_from(convpeft.method_info(method).norm_policies))
    randomise(attach_anything(model, method, num_classes=classes, norm=norm))
    convpeft.detach(model)
    assert_same_state(model, before)
    assert types_of(model) == types
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("method", MAPS)
@AT_MOST_200
@given(plan=plans(), data=st.data())
def test_merged_copy_leaves_the_model_as_it_was(method: str, plan: Plan, data: st.DataObject) -> None:
    model, x = plan.build(), plan.example()
    randomise(attach_anything(model, method, num_classes=data.draw(st.sampled_from([None, 7]))))
    before, types, expected = snapshot(model), types_of(model), model(x)
    twin = convpeft.merged(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert_same_state(model, before)
    assert types_of(model) == types
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("method", MAPS)
@AT_MOST_200
@given(plan=plans(), data=st.data())
def test_merged_model_has_the_base_types_and_keys(method: str, plan: Plan, data: st.DataObject) -> None:
    model = plan.build()
    before, types = snapshot(model), types_of(model)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    randomise(
        attach_anything(model, method, norm=data.draw(st.sampled_from(convpeft.method_info(method).norm_policies)))
    )
    convpeft.merge(model)
    assert types_of(model) == types
    new = [key for key in model.state_dict() if key not in before]
    assert [key for key in model.state_dict() if key in before] == list(before)
    assert all(key.endswith("bias") for key in new)  # a bias may come into being, nothing else
    if not new:
        assert [parameter.requires_grad for parameter in model.parameters()] == trainable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_base_survives_a_hundred_cycles_of_training(dtype: torch.dtype) -> None:
    for number in range(10):
        model = cycle_network(number).to(dtype).eval()
        x = torch.randn(2, 3, 6, 6).to(dtype)
        before, types, expected = snapshot(model), types_of(model), model(x)
        for cycle in range(CYCLES):
            method = METHODS[cycle % len(METHODS)]
            attach_anything(model, method, num_classes=None if cycle % 3 else 5)
            train_steps(model, x, torch.optim.SGD(convpeft.param_groups(model), lr=0.05), 1)
            model.eval()
            if cycle % 10 == 0 and not holds_branch(model):
                convpeft.merged(model)
            convpeft.detach(model)
            counted("cycles of attaching, training and detaching")
        assert_same_state(model, before)
        assert types_of(model) == types
        assert torch.equal(model(x), expected)


def cycle_network(number: int) -> nn.Module:
    torch.manual_seed(number)
    width = (4, 8)[number % 2]
    norm = [nn.BatchNorm2d(width), nn.GroupNorm(2, width), nn.Identity()][number % 3]
    first = nn.Conv2d(3, width, 3, stride=1 + number % 2, padding=1, bias=number % 4 == 0)
    grouped = nn.Conv2d(width, width, 3, groups=(1, 2, width)[number % 3], padding=1)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(first, norm, nn.ReLU(inplace=True), grouped, pool, nn.Flatten(), nn.Linear(width, 4))


def test_error_while_attaching_leaves_the_model_as_it_was() -> None:
    model = cycle_network(0)
    before, types = snapshot(model), types_of(model)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    model[6].convpeft = "in the way"
    with pytest.raises(convpeft.ModelError, match="already has an attribute 'convpeft'"):
        convpeft.attach(model, "full")
    assert_same_state(model, before)
    assert types_of(model) == types
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_detach_of_one_adapter_leaves_the_others() -> None:
    model = cycle_network(0).eval()
    x = torch.randn(2, 3, 8, 8)
    randomise(convpeft.attach(model, "lora", name="first"))
    expected = model(x)
    randomise(convpeft.attach(model, "bitfit", name="second"), name="second")
    assert not torch.equal(model(x), expected)
    convpeft.detach(model, "second")
    assert torch.equal(model(x), expected)


def test_deepcopy_detaches_on_its_own() -> None:
    model = cycle_network(0).eval()
    x = torch.randn(2, 3, 8, 8)
    base_output = model(x)
    randomise(convpeft.attach(model, "lora"))
    expected = model(x)
    twin = convpeft.detach(copy.deepcopy(model))
    assert torch.equal(twin(x), base_output)
    assert torch.equal(model(x), expected)
