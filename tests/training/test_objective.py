"""Learning without forgetting: the loss, what it leaves alone, and that it keeps what it is there to keep."""

import numpy as np
import pytest
import torch
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.training.objective import lwf_loss
from convpeft.training.recipe import make_recipe


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_loss_is_the_papers_softened_cross_entropy(temperature: float) -> None:
    base = network().eval()
    before = base(IMAGES).detach().double().numpy()
    model = randomise(convpeft.attach(network().eval(), "lora", num_classes=3))
    with convpeft.old_head(model):
        after = model(IMAGES).detach().double().numpy()
    kept, now = softmax(before / temperature), softmax(after / temperature)
    expected = -(kept * np.log(now)).sum(1).mean()
    assert lwf_loss(model, IMAGES, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_loss_leaves_modes_activity_and_base_alone() -> None:
    model = convpeft.attach(network(), "lora", num_classes=3, norm="train").train()
    model[3].eval()
    flags = [module.training for module in model.modules()]
    base = {key: value.clone() for key, value in model.state_dict().items() if "convpeft" not in key}
    lwf_loss(model, IMAGES)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(base[key], value) for key, value in model.state_dict().items() if key in base)
    assert model(IMAGES).shape == (6, 3)


def test_gradient_reaches_the_adapter_and_not_the_new_head() -> None:
    model = randomise(convpeft.attach(network().eval(), "lora", num_classes=3))
    lwf_loss(model, IMAGES).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"0.convpeft.default:lora.up", "0.convpeft.default:lora.down"} <= touched
    assert not any("head" in name for name in touched)


def agreement(weight: float) -> float:
    """Share of images of which the old head says what the base says, after training to the new task alone."""
    model = convpeft.attach(network().eval(), "full", num_classes=3, norm="frozen")
    labels = torch.arange(60) % 3
    images = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(2)) + labels[:, None, None, None] - 1
    with torch.no_grad(), convpeft.disabled(model):
        before = model(images).argmax(1)
    optimizer = torch.optim.AdamW(convpeft.param_groups(model, lr=0.01))
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        (loss + weight * lwf_loss(model, images)).backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.9
        with convpeft.old_head(model):
            return float((model(images).argmax(1) == before).float().mean())


def test_what_the_base_said_is_kept() -> None:
    assert agreement(30.0) >= agreement(0.0) + 0.1


def test_recipe_knows_the_objective() -> None:
    values = {"model": {"source": "small-cnn"}, "data": {"source": "glyphs"}, "train": {"objective": "lwf"}}
    settings = make_recipe(values).train
    assert (settings.objective, settings.lwf_weight, settings.lwf_temperature) == ("lwf", 1.0, 2.0)
    with pytest.raises(convpeft.OptionError, match=r"train\.objective='lfw'"):
        make_recipe(values | {"train": {"objective": "lfw"}})
