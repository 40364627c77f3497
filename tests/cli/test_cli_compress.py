"""`convpeft compress` from end to end: on glyphs, from a trained network to a thin one that is restored."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import convpeft
from convpeft.data import load_data
from convpeft.data.splits import choose
from convpeft.models import load_model

DIGITS, TRAIN, OTHERS = 10, 400, 200


def write_npz(path, *, poisoned: bool = False):
    """Some of the glyph digits as one file; `poisoned`: with other labels on the test images."""
    splits = load_data("glyphs:digits").splits()
    arrays = {"classes": np.array([str(number) for number in range(DIGITS)])}
    for name, count in (("train", TRAIN), ("val", OTHERS), ("test", OTHERS)):
        images, chosen = splits[name].images, choose(splits[name].labels, count, seed=0)
        labels = splits[name].labels[chosen]
        arrays[f"{name}_images"] = np.stack([images[number][..., 0] for number in chosen])
        arrays[f"{name}_labels"] = (labels + 1) % DIGITS if poisoned and name == "test" else labels
    np.savez(path, **arrays)
    return path


def prepared(split):
    pixels = np.stack([split.images[number][..., 0] for number in range(len(split))]) / 255
    return torch.tensor((pixels[:, None] - 0.1307) / 0.3081, dtype=torch.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images.npz, and base.safetensors trained on them."""
    folder = tmp_path_factory.mktemp("compress")
    write_npz(folder / "images.npz")
    train = load_data(f"npz:{folder / 'images.npz'}").train
    images, labels = prepared(train), torch.from_numpy(train.labels)
    torch.manual_seed(0)
    model = load_model("small-cnn", pretrained=False).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(10):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(model.state_dict(), folder / "base.pth")
    return folder


def words(trained, out, *more, data="images.npz"):
    base = ["compress", "small-cnn", "--weights", trained / "base.pth", "--data", f"npz:{trained / data}", "--out", out]
    return [*base, "--candidates", "6", *more]


@pytest.fixture(scope="module")
def thin(trained):
    """What a drop of a fifth leaves, and its report."""
    out = trained / "thin.safetensors"
    command = [sys.executable, "-m", "convpeft", *map(str, words(trained, out, "--accuracy-drop", "0.2"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(out.with_suffix(".json").read_text(encoding="utf-8")), done.stdout


def accuracy(model, trained, split: str) -> float:
    images = load_data(f"npz:{trained / 'images.npz'}").split(split)
    with torch.inference_mode():
        found = model.eval()(prepared(images)).argmax(1)
    return float((found.numpy() == images.labels).mean())


def test_thin_network_is_within_the_drop_on_the_choosing_images(thin, trained):
    out, facts, _ = thin
    base = load_model("small-cnn", weights=trained / "base.pth")
    before, after = facts["choosing_accuracy"]
    assert before == pytest.approx(accuracy(base, trained, "val"))
    assert after == pytest.approx(accuracy(convpeft.load_compressed(out), trained, "val"))
    assert before > 0.6
    assert after >= before - 0.2


def test_test_figures_are_those_of_the_saved_network(thin, trained):
    out, facts, _ = thin
    base = load_model("small-cnn", weights=trained / "base.pth")
    assert facts["test"]["before"]["accuracy"] == pytest.approx(accuracy(base, trained, "test"))
    assert facts["test"]["after"]["accuracy"] == pytest.approx(accuracy(convpeft.load_compressed(out), trained, "test"))
    low, high = facts["test"]["after"]["interval"]
    assert low < facts["test"]["after"]["accuracy"] < high


def test_told_parameters_are_those_of_the_file(thin):
    out, facts, _ = thin
    assert facts["parameters"][1] == sum(tensor.numel() for tensor in load_file(out).values())
    assert facts["parameters"][1] < facts["parameters"][0]
    assert facts["multiplications"][1] < facts["multiplications"][0]


def test_table_shows_every_layer_with_its_ranks(thin):
    _, facts, printed = thin
    for layer in facts["layers"]:
        assert layer["path"] in printed
        assert "x".join(map(str, layer["shape"])) in printed
    assert "in all" in printed
    assert facts["test"]["sentence"] in printed
    for layer, pair in facts["layer_multiplications"].items():
        assert (pair[1] < pair[0]) == (next(x for x in facts["layers"] if x["path"] == layer)["ranks"] is not None)


def test_report_is_one_page_with_the_command(thin):
    page = thin[0].with_suffix(".html").read_text(encoding="utf-8")
    assert "convpeft compress small-cnn" in page
    assert "conv2" in page


def test_labels_of_the_test_split_choose_nothing(call, trained, tmp_path):
    write_npz(trained / "poisoned.npz", poisoned=True)
    found = [
        call(*words(trained, tmp_path / f"{data}.safetensors", "--json", data=data)).json
        for data in ("images.npz", "poisoned.npz")
    ]
    honest, poisoned = found
    assert honest["layers"] == poisoned["layers"]
    assert honest["choosing_accuracy"] == poisoned["choosing_accuracy"]
    assert honest["test"]["before"]["accuracy"] > poisoned["test"]["before"]["accuracy"] + 0.3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_adapters_restore_the_accuracy(thin, trained, tmp_path, method):
    out, _, _ = thin
    options = {"rank": 4} if method == "lora" else {}
    values = {
        "model": {"source": f"compressed:{out}", "keep_head": True},
        "data": {"source": f"npz:{trained / 'images.npz'}"},
        "method": {"name": method, **options},
        "train": {"epochs": 6, "batch_size": 32, "lr": 3e-4},
        "out": str(tmp_path / "run"),
    }
    convpeft.train(values)
    restored = convpeft.merge(convpeft.from_adapter(tmp_path / "run" / "adapter"))
    assert accuracy(restored, trained, "val") >= accuracy(convpeft.load_compressed(out), trained, "val")
    assert any(name.startswith("conv2.0") for name, _ in restored.named_parameters())


def test_file_that_is_there_is_not_overwritten(call, thin, trained):
    line = call(*words(trained, thin[0])).failed(2)
    assert "thin.safetensors exists already. Give another name." in line


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--method", "cdp"), "--method cdp: does not exist. Did you mean 'cpd'?"),
        (("--accuracy-drop", "2"), "accuracy-drop"),
        (("--include", "nowhere"), "include='nowhere' names no layer of this model"),
        (("--include", "classifier"), "no convolution of this model can be compressed"),
    ],
)
def test_wrong_option_is_one_line(call, trained, tmp_path, more, told):
    outcome = call(*words(trained, tmp_path / "x.safetensors", *more))
    assert outcome.status in (1, 2)
    assert told in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_ending_is_refused(call, trained, tmp_path):
    line = call(*words(trained, tmp_path / "thin.pth")).failed(2)
    assert "thin.pth: expected a name that ends in .safetensors" in line


def test_folder_that_cannot_be_written_is_one_line(call, trained, tmp_path):
    (tmp_path / "file").write_text("")
    line = call(*words(trained, tmp_path / "file" / "thin.safetensors", "--json")).failed(1)
    assert "cannot be written" in line
    assert "Free space or give another name" in line
