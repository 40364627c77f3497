"""`convpeft inspect --cost`: what training costs, layer by layer, and one line for every mistake."""

import pytest
import torch

import convpeft

QUICK = ("--batch", "2", "--size", "32")


def test_cost_of_a_model_is_a_line_a_layer_and_the_totals(call):
    text = call("inspect", "--cost", "timm/resnet18", *QUICK).succeeded()
    assert "timm/resnet18, lora: a step of training on images 2x3x32x32" in text
    assert "layer4.1.conv2" in text
    assert "folds bn1" in text
    for word in ("multiplications", "kept for the backward pass", "full fine-tuning", "parameters trained", "ratio"):
        assert word in text
    assert "layout of images inside the network: channels_last" in text


def test_cost_is_that_of_the_library(call):
    told = call("inspect", "--cost", "timm/resnet18", "--method", "lora-fa", "--json", *QUICK).json
    model = convpeft.attach(convpeft.load_model("timm/resnet18", pretrained=False), "lora-fa")
    cost = convpeft.training_cost(model, torch.ones(2, 3, 32, 32))
    expected = {"model": "timm/resnet18", "method": "lora-fa", "images": [2, 3, 32, 32]} | cost.to_dict()
    assert told == expected | {"layers": [vars(layer) for layer in cost.layers]}


def test_cost_of_a_run_is_that_of_its_method_at_its_size(call, run):
    told = call("inspect", "--cost", run, "--json").json
    assert told["method"] == "lora"
    assert told["images"] == [8, 1, 28, 28]
    assert told["adapted"]["trained"] < told["full"]["trained"]


def test_method_of_a_run_cannot_be_changed(call, run):
    message = call("inspect", "--cost", run, "--method", "dora").failed(2)
    assert f"--method dora: {run} has a method already" in message


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--cost", "timm/resnet99"), 1, "timm knows no such model"),
        (("--cost", "timm/resnet18", "--method", "lroa"), 2, "Did you mean 'lora'"),
        (("--cost", "timm/resnet18", "--batch", "0"), 2, "--batch"),
        (("--cost", "timm/resnet18", "--batch", "1", "--size", "8"), 1, "cannot be trained on images 1x3x8x8"),
        (("somewhere", "--batch", "3"), 2, "--method, --batch, --size and --weights belong to --cost. Add it"),
    ],
)
def test_mistakes_are_one_line(call, words, status, message):
    assert message in call("inspect", *words).failed(status)


def test_model_without_preprocessing_is_refused(call, monkeypatch):
    monkeypatch.setattr("convpeft.models.preprocessing_of", lambda model: None)
    assert "tells no preprocessing. Load it with" in call("inspect", "--cost", "small-cnn").failed(2)
