"""`convpeft predict`, `merge` and `inspect`: what was trained is used."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import convpeft
from convpeft.adapter_file import read_adapter
from convpeft.evaluation.inference import classify, load_classifier
from tiny import CLASSES

FLOAT32_TOLERANCE = 1e-5


def test_predict_answers_for_every_image_of_a_folder(call, run, images):
    told = call("predict", run, images / "low", "--json").json
    assert [each["image"] for each in told] == [str(images / "low" / f"{number}.png") for number in range(8)]
    assert sum(each["top"][0]["class"] == "low" for each in told) >= 6


def test_predict_names_the_classes_best_first(call, run, images):
    (told,) = call("predict", run, images / "high" / "0.png", "--json").json
    chances = [each["probability"] for each in told["top"]]
    assert sorted(each["class"] for each in told["top"]) == list(CLASSES)
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1.0)


def test_predict_shows_as_many_classes_as_asked_for(call, run, images):
    (told,) = call("predict", run, images / "high" / "0.png", "--json", "--top", "2").json
    assert len(told["top"]) == 2


def test_predict_prints_a_line_an_image(call, run, images):
    files = [images / "high" / "0.png", images / "low" / "1.png"]
    lines = call("predict", run, *files, "--top", "1").succeeded().splitlines()
    assert len(lines) == 2
    for line, file in zip(lines, files, strict=True):
        assert line.startswith(f"{file}: ")
        assert line.endswith("%")


def test_predict_agrees_with_the_test_predictions_of_the_run(call, run):
    """One answer everywhere: the class of every test image, and its probability."""
    import csv

    with (run / "predictions.csv").open() as handle:
        rows = {row["image"]: row for row in csv.DictReader(handle)}
    root = json.loads((run / "metrics.json").read_text())["recipe"]["data"]["source"].removeprefix("folder:")
    for image, row in rows.items():
        (told,) = call("predict", run, f"{root}/{image}", "--json", "--top", "1").json
        assert told["top"][0]["class"] == row["predicted"]
        assert told["top"][0]["probability"] == pytest.approx(float(row["probability"]), abs=FLOAT32_TOLERANCE)


def test_predict_finds_images_in_subfolders_and_passes_over_hidden_ones(call, run, images, tmp_path):
    shutil.copytree(images, tmp_path / "all")
    (tmp_path / "all" / "low" / "._0.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "all" / "__MACOSX").mkdir()
    (tmp_path / "all" / "__MACOSX" / "0.png").write_bytes(b"the same")
    (tmp_path / "all" / "notes.txt").write_text("no picture")
    assert len(call("predict", run, tmp_path / "all", "--json").json) == 24


def test_predict_reads_colour_and_other_sizes_and_upper_case_names(call, run, tmp_path):
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(tmp_path / "PICTURE.PNG")
    assert len(call("predict", run, tmp_path, "--json").json) == 1


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("text.png", b"not a picture", "text.png"),
        ("empty.png", b"", "empty.png"),
        ("cut.png", None, "cut.png"),
    ],
)
def test_bad_image_is_one_line_that_names_it(call, run, images, tmp_path, name, content, line):
    whole = (images / "low" / "0.png").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert line in call("predict", run, tmp_path / name).failed(1)


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("RUN", "nowhere.png"), 1, "nowhere.png: there is no such file or folder"),
        (("nowhere", "IMAGE"), 1, "nowhere: holds no adapter"),
        (("RUN",), 2, "Missing argument 'IMAGE...'"),
        (("RUN", "IMAGE", "--top", "0"), 2, "--top"),
        (("RUN", "EMPTY"), 1, "holds no image"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistake_of_predict_is_one_line(call, run, images, tmp_path, monkeypatch, words, status, line):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": run, "IMAGE": images / "low" / "0.png", "EMPTY": tmp_path}
    assert line in call("predict", *(places.get(word, word) for word in words)).failed(status)


def test_merged_weights_predict_the_same_without_convpeft_on_the_model(call, run, images, tmp_path):
    file = tmp_path / "new" / "merged.safetensors"
    text = call("merge", run, "--out", file).succeeded()
    assert str(file) in text
    plain = convpeft.load_model("small-cnn", num_classes=3, weights=file).eval()
    classifier = load_classifier(run)
    pictures = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = classifier.model(pictures), plain(pictures)
    assert (logits - expected).abs().max() <= FLOAT32_TOLERANCE * expected.abs().max()
    assert not any("convpeft" in key for key in plain.state_dict())


def test_merge_that_fails_leaves_nothing_and_says_why(call, run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    line = call("merge", run, "--out", tmp_path / "merged.safetensors").failed(1)
    assert (
        "merged.safetensors: cannot be written ([Errno 28] No space left on device). Free space or give another name"
        in line
    )
    assert list(tmp_path.iterdir()) == []


def test_merged_file_tells_classes_and_preprocessing(call, run, tmp_path):
    call("merge", run, "--out", tmp_path / "merged.safetensors").succeeded()
    with safe_open(tmp_path / "merged.safetensors", framework="pt") as file:
        told = file.metadata()
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["preprocessing"])["size"] == [28, 28]


def test_merging_leaves_nothing_else_behind(call, run, tmp_path):
    call("merge", run, "--out", tmp_path / "merged.safetensors").succeeded()
    assert [path.name for path in tmp_path.iterdir()] == ["merged.safetensors"]


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("RUN", "--out", "merged.pth"), 2, "expected a name that ends in .safetensors"),
        (("RUN", "--out", "there.safetensors"), 2, "exists already. Give another name"),
        (("nowhere", "--out", "m.safetensors"), 1, "nowhere: holds no adapter"),
        (("RUN",), 2, "Missing option '--out'"),
        (("RUN", "--out", "there.safetensors/m.safetensors"), 1, "there.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistake_of_merge_is_one_line(call, run, tmp_path, monkeypatch, words, status, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").write_text("mine")
    assert line in call("merge", *(word.replace("RUN", str(run)) for word in words)).failed(status)
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_inspect_shows_what_the_file_holds(call, run):
    text = call("inspect", run).succeeded()
    for word in ("lora", "rank=2", "high, low, middle", "small-cnn", "conv1:lora.down", "2x9", "float32"):
        assert word in text


def test_inspect_tells_programs_the_same(call, run):
    told, file = call("inspect", run / "adapter", "--json").json, read_adapter(run)
    assert told["method"] == "lora"
    assert told["classes"] == list(CLASSES)
    assert told["stored"] == sum(tensor.numel() for tensor in file.tensors.values())
    assert told["shapes"]["conv1:lora.down"] == "2x9"
    assert told["bytes"] == sum(path.stat().st_size for path in file.path.iterdir())


def test_inspect_needs_no_base(call, tmp_path):
    """The recorded base may be anything, or nothing: it is not built to look at a file."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(3))
    model(torch.zeros(1, 1, 28, 28))
    convpeft.save(convpeft.attach(model, "lora", rank=1), tmp_path / "adapter")
    text = call("inspect", tmp_path / "adapter").succeeded()
    assert "not recorded" in text
    assert "0:lora.down" in text


def test_names_are_shown_as_text(call, run, tmp_path):
    """Class and file names are anybody's words: they are no markup, and they do not steer the terminal."""
    convpeft.save(convpeft.from_adapter(run), tmp_path / "adapter", classes=["[bold]high[/bold]", "[/]", "[red]"])
    assert "[bold]high[/bold], [/], [red]" in call("inspect", tmp_path / "adapter").succeeded()
    file = tmp_path / "\x1b[31m[bold].png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(file)
    text = call("predict", tmp_path / "adapter", file).succeeded()
    assert "\ufffd[31m[bold].png: " in text
    assert "[/]" in text
    assert "\x1b" not in text
    assert "\x1b" not in call("predict", tmp_path / "adapter", f"{file}x").failed(1)


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_inspect_of_what_is_no_adapter_is_one_line(call, tmp_path, path):
    (tmp_path / "file").write_text("text")
    assert "holds no adapter" in call("inspect", tmp_path / path).failed(1)


def test_classifier_of_the_library_answers_as_the_command_does(call, run, images):
    told = call("predict", run, images / "low", "--json").json
    answers = classify(load_classifier(run), sorted((images / "low").iterdir()))
    assert [each["top"][0]["class"] for each in told] == [answer.classes[0] for answer in answers]
