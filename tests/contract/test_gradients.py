"""C10: gradients are those of the function that is computed; the printed count is the true one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import convpeft
from contract.methods_under_test import AT_MOST_200, METHODS, attach_anything, methods_for, options_for
from contract.networks import Geometry, Plan, geometries, plans, randomise
from measuring import counted

pytestmark = [
    pytest.mark.contract,
    pytest.mark.promise("C10"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]


def assert_gradients_are_right(layer: nn.Module, x: Tensor) -> None:
    names = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    values = [dict(layer.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def output(x: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    assert names
    assert torch.autograd.gradcheck(output, (x.requires_grad_(), *values), fast_mode=True)
    counted("gradients checked, over all methods")


@pytest.mark.parametrize("method", methods_for("conv"))
@AT_MOST_200
@given(geometry=geometries(), data=st.data(), seed=st.integers(0, 2**20))
def test_gradients_of_an_adapted_convolution_are_right(
    method: str, geometry: Geometry, data: st.DataObject, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = geometry.build().double()
    options = {"create": True} if method == "bitfit" else data.draw(options_for(method))
    try:
        randomise(convpeft.attach(layer, method, include=["conv"], **options), seed)
    except convpeft.OptionError as error:
        assert "finds no layer" in str(error)
        return
    assert_gradients_are_right(layer, torch.randn(2, geometry.in_channels, *geometry.space, dtype=torch.float64))


@pytest.mark.parametrize("method", methods_for("linear"))
def test_gradients_of_an_adapted_linear_layer_are_right(method: str) -> None:
    layer = randomise(convpeft.attach(nn.Linear(9, 8).double(), method, include=["linear"]))
    assert_gradients_are_right(layer, torch.randn(3, 9, dtype=torch.float64))


@pytest.mark.parametrize("policy", ["frozen", "train"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((4, 3, 3))], ids=repr)
def test_gradients_through_a_norm_are_right(norm: nn.Module, training: bool, policy: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Flatten(), nn.Linear(36, 3)).double().train(training)
    method = "norm-tuning" if policy == "frozen" else "full"
    randomise(convpeft.attach(model, method, norm=policy))
    assert_gradients_are_right(model, torch.randn(3, 2, 5, 5, dtype=torch.float64))
    convpeft.detach(model)


@pytest.mark.parametrize("method", METHODS)
@AT_MOST_200
@given(plan=plans(), classes=st.sampled_from([None, 4]))
def test_count_is_the_number_of_trainable_numbers(method: str, plan: Plan, classes: int | None) -> None:
    model = plan.build()
    size = sum(parameter.numel() for parameter in model.parameters())
    attach_anything(model, method, num_classes=classes)
    numbers = convpeft.count(model)
    assert numbers.base == size
    assert numbers.trainable == sum(parameter.numel() for parameter in convpeft.trainable_parameters(model))
    grouped = [parameter for group in convpeft.param_groups(model) for parameter in group["params"]]
    assert numbers.trainable == sum(parameter.numel() for parameter in grouped)
    assert numbers.trainable == sum(numbers.layers.values())


@pytest.mark.parametrize("method", METHODS)
@AT_MOST_200
@given(plan=plans())
def test_every_trainable_number_moves(method: str, plan: Plan) -> None:
    model, x = plan.build().train(), plan.example()
    randomise(attach_anything(model, method), plan.seed)
    loss = (model(x) * torch.randn(2, plan.classes)).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in convpeft.trainable_parameters(model))
