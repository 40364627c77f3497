"""Counts, optimiser groups, and the hooks that a training loop calls."""

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft import adapters
from convpeft.counting import training_parts


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_count_by_hand() -> None:
    counted = convpeft.count(convpeft.attach(network(), "lora", rank=2, num_classes=5))
    assert counted.base == 8 * 27 + 8 + 16 + 8 * 36 * 4 + 4
    assert counted.layers == {"0": 2 * (8 + 27), "3": 8 * 36 * 5 + 5}
    assert counted.trainable == counted.stored == sum(counted.layers.values())
    assert counted.share == pytest.approx(counted.trainable / counted.base)


def test_stored_counts_statistics_too() -> None:
    counted = convpeft.count(convpeft.attach(network(), "lora", rank=2, norm="adapt"))
    assert counted.stored == counted.trainable + 8 + 8 + 1


def test_count_of_a_plain_model() -> None:
    model = network()
    size = sum(parameter.numel() for parameter in model.parameters())
    counted = convpeft.count(model)
    assert (counted.base, counted.trainable, counted.stored, counted.layers) == (size, size, 0, {})


def test_tied_weights_are_counted_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    assert convpeft.count(convpeft.attach(model, "bitfit")).base == 81 + 6


def test_trainable_parameters_are_those_that_need_a_gradient() -> None:
    model = convpeft.attach(network(), "lora")
    found = convpeft.trainable_parameters(model)
    assert {id(p) for p in found} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(isinstance(parameter, nn.Parameter) for parameter in found)


def test_groups_decay_matrices_alone() -> None:
    model = convpeft.attach(network(), "lora", num_classes=5)
    groups = convpeft.param_groups(model, lr=0.1, weight_decay=0.01)
    assert {group["lr"] for group in groups} == {0.1}
    decay = {group["weight_decay"]: {parameter.ndim for parameter in group["params"]} for group in groups}
    assert decay == {0.01: {2}, 0.0: {1}}


def test_groups_take_the_rate_of_the_method_by_default() -> None:
    for method in convpeft.list_methods():
        model = convpeft.attach(network(), method)
        rate = convpeft.method_info(method).learning_rate
        scales = {group.get("lr_scale", 1.0) for part in training_parts(model) for group in part.param_groups()}
        rates = {group["lr"] for group in convpeft.param_groups(model)}
        assert rates
        assert rates <= {rate * scale for scale in scales}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[adapters.Adapter]:
    """A method that uses every hook: groups of its own, a penalty, work after a step."""
    monkeypatch.setattr(adapters, "METHODS", dict(adapters.load_methods()))

    class Toy(adapters.Adapter, name="toy"):
        def __init__(self, site: convpeft.Site, *, strength: float = 2.0) -> None:
            super().__init__(site)
            self.strength, self.steps = strength, 0
            self.fast = nn.Parameter(torch.zeros(site.shape))
            self.slow = nn.Parameter(torch.zeros(site.shape))

        def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return weight + self.fast + self.slow, bias

        def param_groups(self) -> list[dict]:
            return [{"params": [self.fast], "lr_scale": 16.0, "weight_decay": 0.5}, {"params": [self.slow]}]

        def penalty(self) -> Tensor:
            return self.strength * self.fast.square().sum()

        @classmethod
        def after_step(cls, parts, progress, optimizer) -> None:
            for part in parts:
                part.steps += 1

    return Toy


def toy_parts(model: nn.Module, toy: type) -> list:
    return [module for module in model.modules() if isinstance(module, toy)]


def test_method_keeps_its_own_rates_and_decay(toy: type[adapters.Adapter]) -> None:
    model = convpeft.attach(network(), "toy")
    groups = convpeft.param_groups(model, lr=0.1, weight_decay=0.01)
    (part,) = toy_parts(model, toy)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {id(part.fast): (pytest.approx(1.6), 0.5), id(part.slow): (0.1, 0.01)}


def test_penalty_is_the_sum_over_layers(toy: type[adapters.Adapter]) -> None:
    model = convpeft.attach(network(), "toy", include=["conv", "linear"], strength=3.0)
    with torch.no_grad():
        for part in toy_parts(model, toy):
            part.fast.fill_(1.0)
    penalty = convpeft.penalty(model)
    assert penalty.item() == pytest.approx(3.0 * (8 * 27 + 8 * 36 * 4))
    penalty.backward()
    assert all(torch.equal(part.fast.grad, torch.full_like(part.fast, 6.0)) for part in toy_parts(model, toy))


def test_penalty_of_a_method_without_one_is_none() -> None:
    assert convpeft.penalty(convpeft.attach(network(), "lora")) is None


def test_after_step_reaches_every_part_that_trains(toy: type[adapters.Adapter]) -> None:
    model = convpeft.attach(network(), "toy", include=["conv", "linear"])
    convpeft.after_step(model)
    convpeft.after_step(model)
    assert [part.steps for part in toy_parts(model, toy)] == [2, 2]
    convpeft.attach(model, "lora", name="later")
    convpeft.after_step(model)
    assert [part.steps for part in toy_parts(model, toy)] == [2, 2]


def test_toy_method_merges_saves_and_loads(toy: type[adapters.Adapter], tmp_path) -> None:
    torch.manual_seed(0)
    base = network().eval()
    torch.manual_seed(0)
    model = convpeft.attach(network().eval(), "toy", strength=5.0)
    with torch.no_grad():
        for part in toy_parts(model, toy):
            part.slow.normal_()
    x = torch.randn(2, 3, 8, 8)
    convpeft.save(model, tmp_path / "adapter")
    loaded = convpeft.load(base, tmp_path / "adapter")
    assert torch.equal(loaded(x), model(x))
    assert toy_parts(loaded, toy)[0].strength == 5.0
    assert torch.allclose(convpeft.merge(loaded)(x), model(x), atol=1e-5)


def test_adapter_that_is_frozen_is_not_counted_as_trained() -> None:
    model = convpeft.attach(network(), "lora", rank=2, name="first")
    convpeft.attach(model, "bitfit", name="second")
    counted = convpeft.count(model)
    assert counted.layers == {"0": 8, "1": 8, "3": 4}  # biases alone
    assert counted.trainable == 20
