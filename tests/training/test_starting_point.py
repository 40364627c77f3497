"""L2-SP: the loss is the squared way from the start, the head has none, and a strong one keeps weights near it."""

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.training.recipe import make_recipe
from convpeft.training.starting_point import l2sp_loss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_full_is_half_the_squared_way_from_the_base() -> None:
    base = {key: as_array(value) for key, value in network().state_dict().items()}
    model = randomise(convpeft.attach(network(), "full", num_classes=3))
    expected = 0.0
    for name, parameter in model.named_parameters():
        path, _, part = name.partition(".convpeft.default:")
        if part.startswith("full."):
            expected += ((as_array(parameter) - base[f"{path}.{part.removeprefix('full.')}"]) ** 2).sum() / 2
    assert expected > 0.1
    assert l2sp_loss(model).item() == pytest.approx(expected, rel=1e-5)


def test_lora_is_half_the_squared_size_of_the_update() -> None:
    model = randomise(convpeft.attach(network(), "lora", rank=2, num_classes=3))
    part = {name.rpartition(".")[2]: as_array(p) for name, p in model.named_parameters() if ":lora." in name}
    expected = (part["up"].reshape(8, -1) @ part["down"].reshape(part["up"].reshape(8, -1).shape[1], -1)) ** 2
    assert expected.sum() > 1e-4
    assert l2sp_loss(model).item() == pytest.approx(expected.sum() / 2, rel=1e-5)


def test_gradient_is_the_way_from_the_start_and_the_head_has_none() -> None:
    base = network()
    model = randomise(convpeft.attach(network(), "full", num_classes=3))
    l2sp_loss(model).backward()
    parameters = dict(model.named_parameters())
    own = parameters["0.convpeft.default:full.weight"]
    assert own.grad is not None
    torch.testing.assert_close(own.grad, own.detach() - base[0].weight.detach())
    assert all(p.grad is None for name, p in parameters.items() if ":head." in name)


def test_a_fresh_adapter_is_at_its_start() -> None:
    for method in ("full", "lora", "bitfit"):
        assert l2sp_loss(convpeft.attach(network(), method, num_classes=3)).item() == 0.0


def test_start_of_a_second_adapter_is_what_the_first_made() -> None:
    model = randomise(convpeft.attach(network(), "lora", name="first"))
    convpeft.attach(model, "full", name="second")
    assert l2sp_loss(model).item() == pytest.approx(0.0, abs=1e-9)


def test_adapter_without_a_start_is_refused() -> None:
    with pytest.raises(convpeft.ModelError, match="trains no weight of the base, so there is no start to stay near"):
        l2sp_loss(convpeft.attach(network(), "probe", num_classes=3))


def way(strength: float) -> float:
    """How far the first convolution moves in a few steps to a task of three classes."""
    base, model = network(), convpeft.attach(network(), "full", num_classes=3)
    labels = torch.arange(30) % 3
    images = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(2)) + labels[:, None, None, None] - 1
    optimizer = torch.optim.SGD(convpeft.param_groups(model, lr=0.02))
    for _ in range(25):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(images), labels) + strength * l2sp_loss(model)).backward()
        optimizer.step()
    return float((convpeft.merged(model)[0].weight - base[0].weight).detach().norm())


def test_strong_decay_keeps_weights_near_the_start() -> None:
    assert way(10.0) < 0.5 * way(0.0)


def test_recipe_knows_the_objective() -> None:
    values = {"model": {"source": "small-cnn"}, "data": {"source": "glyphs"}, "train": {"objective": "l2-sp"}}
    settings = make_recipe(values).train
    assert (settings.objective, settings.l2sp_weight) == ("l2-sp", 0.1)
