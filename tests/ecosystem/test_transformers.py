"""What is special about transformers: a loss of the model's own, images by name, checkpoints."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import convpeft
from convpeft.checking.subject import perturb
from ecosystem.foreign import FOREIGN, images

transformers = pytest.importorskip("transformers")
CLASSIFIERS = ("transformers/ResNetForImageClassification", "transformers/ConvNextForImageClassification")
LABELS = torch.tensor([0, 2])


@pytest.fixture(params=CLASSIFIERS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return FOREIGN[request.param].model()


def test_count_of_classes_that_the_model_keeps_is_warned_of(model: nn.Module) -> None:
    """Its own loss then fails, or is another one: see the next two tests."""
    with pytest.warns(UserWarning, match=r"model.config.num_labels is 5.*Set model.config.num_labels = 3"):
        convpeft.attach(model, "lora", num_classes=3)


@pytest.mark.filterwarnings("ignore:the new head has")
def test_loss_of_the_model_fails_on_a_stale_count(model: nn.Module) -> None:
    convpeft.attach(model, "lora", num_classes=3)
    with pytest.raises((ValueError, RuntimeError)):
        model(pixel_values=images(), labels=LABELS)


def test_loss_of_the_model_is_right_once_the_count_is(model: nn.Module) -> None:
    model.config.num_labels = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convpeft.attach(model, "lora", num_classes=3)
    output = model(pixel_values=images(), labels=LABELS)
    assert output.logits.shape == (2, 3)
    assert torch.equal(output.loss, cross_entropy(output.logits, LABELS))


def test_head_that_is_kept_needs_no_count(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convpeft.attach(model, "lora")
    output = model(pixel_values=images(), labels=LABELS)
    assert torch.equal(output.loss, cross_entropy(output.logits, LABELS))


@pytest.mark.parametrize("by_name", [True, False])
def test_images_are_turned_by_name_as_by_position(model: nn.Module, by_name: bool) -> None:
    convpeft.attach(model, "lora")
    convpeft.set_kernels(model, layout="channels_last")
    seen: list[bool] = []
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    model.train()
    model(pixel_values=images()) if by_name else model(images())
    assert seen == [True]
    assert convpeft.kernels_of(model).layout == "channels_last"


def test_pretrained_folder_of_a_merged_model_is_an_ordinary_one(model: nn.Module, tmp_path: Path) -> None:
    convpeft.attach(model, "lora")
    perturb(model, 0.1, torch.Generator().manual_seed(0))
    convpeft.merged(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(images()).logits, convpeft.merged(model)(images()).logits)


def test_pretrained_folder_of_an_adapted_model_still_holds_the_base(model: nn.Module, tmp_path: Path) -> None:
    base = copy.deepcopy(model)
    convpeft.attach(model, "lora")
    perturb(model, 0.1, torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(images()).logits, base(images()).logits)
