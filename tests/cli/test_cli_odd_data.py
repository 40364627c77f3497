"""Odd data sets work or are one line that says why, before anything is trained or written."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from convpeft.adapter_file import read_adapter
from convpeft.training import make_recipe
from tiny import CLASSES, draw, recipe, write_images, write_splits

pytestmark = pytest.mark.promise("B04")
FAST = ("--model", "small-cnn", "--epochs", "1", "--batch-size", "4", "--rank", "2")


@pytest.fixture
def train(call, tmp_path):
    """Train on a folder, one epoch."""
    return lambda data, *words: call("train", *FAST, "--data", f"folder:{data}", "--out", tmp_path / "run", *words)


def one_class(root: Path, *, name: str = "low", count: int = 3, split: str | None = None) -> Path:
    return write_images(root, names=(name,), count=count, split=split)


def test_one_class_is_refused_before_training(train, tmp_path):
    line = train(one_class(tmp_path / "data")).failed(1)
    assert "has one class (low), expected two or more. Add another class." in line
    assert not (tmp_path / "run").exists()


def test_one_image_is_refused_before_training(train, tmp_path):
    line = train(one_class(tmp_path / "data", count=1)).failed(1)
    assert "has one class" in line
    one_class(tmp_path / "data", name="high", count=1)
    line = train(tmp_path / "data").failed(1)
    assert "too few images to make a test split out of 2 training images. Add images or give a test split." in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("split", [None, "test", "val", "train"])
def test_one_class_is_measured_by_a_model_of_several(call, run, tmp_path, count, split):
    data = one_class(tmp_path / "data", count=count, split=split)
    told = call("evaluate", run, "--data", f"folder:{data}", "--json").json
    assert told["n"] == count
    assert told["split"] == ("test" if split == "test" else "all")
    assert told["classes"] == list(CLASSES)
    assert told["macro_auc"] is None  # undefined, and no number is made up
    assert told["macro_specificity"] is None
    assert told["accuracy"] > 0.6


def test_undefined_figures_are_shown_as_such(call, run, tmp_path):
    text = call("evaluate", run, "--data", f"folder:{one_class(tmp_path / 'data')}").succeeded()
    row = next(line for line in text.splitlines() if "AUC" in line)
    assert row.split("│")[2].strip() == "-"
    assert "nan" not in text.lower()


def test_empty_folder_is_refused_by_evaluate(call, run, tmp_path):
    (tmp_path / "data" / "low").mkdir(parents=True)
    assert "holds no pictures" in call("evaluate", run, "--data", f"folder:{tmp_path / 'data'}").failed(1)


def test_split_that_the_images_do_not_have_is_cut_as_a_run_would(call, run, tmp_path):
    """Asked for by name, with the run's own seed: the images may be the run's own at another place."""
    data = write_images(tmp_path / "data")
    assert call("evaluate", run, "--data", f"folder:{data}", "--split", "test", "--json").json["n"] == 6


def test_empty_class_is_noted_and_trained_around(train, tmp_path):
    data = write_splits(tmp_path / "data")
    (data / "train" / "nothing").mkdir()
    text = train(data).succeeded()
    assert "class 'nothing': no images in any split" in text


@pytest.mark.parametrize("missing", ["val", "test", "train"])
def test_missing_split_is_made_or_asked_for(train, tmp_path, missing):
    data = write_splits(tmp_path / "data")
    shutil.rmtree(data / missing)
    outcome = train(data)
    if missing == "train":
        assert "has no training images" in outcome.failed(1)
    else:
        assert f"note: {missing}: none was given, so " in outcome.succeeded()


def test_class_that_training_lacks_is_refused(train, tmp_path):
    data = write_splits(tmp_path / "data")
    shutil.rmtree(data / "train" / "low")
    assert "class 'low', of which train has no image" in train(data).failed(1)


def test_label_that_is_missing_in_a_table_is_named(train, tmp_path):
    data = write_images(tmp_path / "data", count=1)
    (data / "labels.csv").write_text("file,label\nlow/0.png,low\nhigh/0.png,\n")
    assert "labels.csv' line 3: the class is empty. Fill it in." in train(data).failed(1)


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ([0.0, np.nan, 1.0, 0.0], "with NaN or fractions, expected whole numbers"),
        ([0.0, 0.5, 1.0, 0.0], "with NaN or fractions, expected whole numbers"),
    ],
)
def test_labels_that_are_no_classes_are_refused(call, tmp_path, labels, line):
    arrays = {f"{split}_images": np.zeros((4, 28, 28), np.uint8) for split in ("train", "val", "test")}
    np.savez(
        tmp_path / "odd.npz", **arrays, **{f"{split}_labels": np.array(labels) for split in ("train", "val", "test")}
    )
    assert line in call("train", *FAST, "--data", f"npz:{tmp_path / 'odd.npz'}", "--out", tmp_path / "run").failed(1)
    assert not (tmp_path / "run").exists()


def test_gaps_in_labels_are_no_classes(call, tmp_path):
    """Labels 2, 5 and 9 are three classes of these names, and no ten."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.stack([draw(name, rng) for name in CLASSES for _ in range(4)])
        arrays[f"{split}_labels"] = np.repeat([2, 5, 9], 4)
    np.savez(tmp_path / "gaps.npz", **arrays)
    call("train", *FAST, "--data", f"npz:{tmp_path / 'gaps.npz'}", "--out", tmp_path / "run").succeeded()
    assert read_adapter(tmp_path / "run").config["classes"] == ["2", "5", "9"]


def network(width: int) -> str:
    return f"""
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, {width}, 3, padding=1), nn.BatchNorm2d({width}), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Conv2d({width}, {width}, 1), nn.BatchNorm2d({width}), nn.Flatten(), nn.Linear({width}, 3))
"""


@pytest.fixture
def pooled(tmp_path, monkeypatch):
    """A network whose second norm sees one value a channel and image."""
    (tmp_path / "pooled_network.py").write_text(network(4))
    monkeypatch.syspath_prepend(tmp_path)
    return ("--model", "pooled_network:build", "--set", "model.image_size=28")


@pytest.mark.parametrize("policy", ["adapt", "train"])
def test_batch_of_one_with_live_norms_is_refused_before_training(call, pooled, images, tmp_path, policy):
    words = ("--data", f"folder:{images}", "--rank", "1", "--norm", policy, "--out", tmp_path / "run")
    line = call("train", *pooled, *words, "--batch-size", "1").failed(2)
    assert "train.batch_size: a batch is one image, and this network cannot learn from one (Expected more than" in line
    assert "Set train.batch_size to 2 or more, or method.norm=" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", ["frozen", "adapt"])
def test_last_batch_of_one_works_with_every_norm(call, pooled, tmp_path, policy):
    """Nine images in fours leave one; frozen norms take it anyway, live ones never see it."""
    data = write_splits(tmp_path / "data", count=3)
    words = ("--data", f"folder:{data}", "--rank", "1", "--norm", policy, "--epochs", "1", "--out", tmp_path / "run")
    call("train", *pooled, *words, "--batch-size", "4").succeeded()


def test_batch_of_one_with_frozen_norms_trains(call, pooled, images, tmp_path):
    words = ("--data", f"folder:{images}", "--rank", "1", "--epochs", "1", "--out", tmp_path / "run")
    call("train", *pooled, *words, "--batch-size", "1").succeeded()


def test_trying_a_batch_of_one_changes_no_bit(pooled, images, tmp_path):
    """Live norms over more than one value take a batch of one; the try leaves adapter and random state alone."""
    import torch

    from convpeft.training import preparing
    from convpeft.training.checkpoints import adapter_tensors

    states = []
    for tried in (True, False):
        values = recipe(images, tmp_path / "run", train__batch_size=1, method__name="lora", method__norm="adapt")
        values["model"] = {"source": "small-cnn"}
        with pytest.MonkeyPatch.context() as patch:
            if not tried:
                patch.setattr(preparing, "_try_single_image", lambda *_: None)
            prepared = preparing.prepare_run(make_recipe(values))
        states.append((adapter_tensors(prepared.model), torch.get_rng_state()))
    assert torch.equal(states[0][1], states[1][1])
    assert all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())
