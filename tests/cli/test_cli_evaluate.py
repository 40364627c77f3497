"""`convpeft evaluate`: a run, an adapter, other images, the base, the old head, and another run."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import convpeft
from convpeft.training import make_recipe
from convpeft.training.runs import open_run, run_prepared
from tiny import CLASSES, draw, files_below, recipe, write_images, write_splits


def confusion(path) -> list[list[str]]:
    with path.open() as handle:
        return list(csv.reader(handle))


@pytest.fixture(scope="module")
def other(images, tmp_path_factory):
    """A second, worse run on the same images and seed."""
    values = recipe(images, tmp_path_factory.mktemp("runs") / "other", method__rank=1, train__epochs=1)
    convpeft.train(values)
    return Path(values["out"])


def test_run_is_evaluated_to_the_figures_it_had_after_training(call, run):
    told, trained = call("evaluate", run, "--json").json, json.loads((run / "metrics.json").read_text())["test"]
    for key, value in trained.items():
        assert told[key] == value, key


@pytest.mark.promise("C05")
def test_confusion_matrix_of_the_reloaded_adapter_is_identical(call, run, tmp_path):
    call("evaluate", run, "--out", tmp_path / "evaluation").succeeded()
    assert confusion(tmp_path / "evaluation" / "confusion.csv") == confusion(run / "confusion.csv")


def test_evaluation_of_a_run_is_written_below_it(call, run):
    text = call("evaluate", run, "--split", "val").succeeded()
    written = [path for path in (run / "evaluation").iterdir() if path.name.startswith("adapter-val-")]
    assert len(written) == 1
    assert files_below(written[0]) == {
        "metrics.json",
        "predictions.csv",
        "confusion.csv",
        "report.html",
        "plots/confusion.png",
        "plots/calibration.png",
    }
    assert str(written[0] / "report.html") in text


def test_evaluation_prints_the_figures_and_every_class(call, run):
    text = call("evaluate", run).succeeded()
    for word in ("accuracy", "macro F1", "AUC", "specificity", "calibration error", *CLASSES):
        assert word in text


def test_split_can_be_chosen(call, run):
    assert call("evaluate", run, "--split", "train", "--json").json["n"] == 12


def test_adapter_alone_is_evaluated_on_given_images(call, run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    data = write_splits(tmp_path / "data")
    told = call("evaluate", tmp_path / "adapter", "--data", f"folder:{data}", "--json").json
    assert told["n"] == 12
    assert told["accuracy"] > 0.6
    assert files_below(tmp_path / "adapter") == {"adapter_config.json", "adapter_model.safetensors"}


def test_report_tells_the_command(call, run, tmp_path):
    call("evaluate", run, "--base", "--out", tmp_path / "e").succeeded()
    assert f"convpeft evaluate {run} --base --out {tmp_path / 'e'}" in (tmp_path / "e/report.html").read_text("utf-8")


@pytest.mark.promise("C14")
def test_labels_follow_names_in_a_folder_that_lacks_a_class(call, run, tmp_path):
    """`low` and `middle` are classes 0 and 1 of these images and 1 and 2 of the adapter."""
    data = write_splits(tmp_path / "data", names=("low", "middle"))
    told = call("evaluate", run, "--data", f"folder:{data}", "--json").json
    assert told["classes"] == list(CLASSES)
    assert told["accuracy"] > 0.6
    assert [each["support"] for each in told["per_class"]] == [0, 4, 4]


@pytest.mark.promise("C14")
def test_labels_follow_names_in_another_order(call, run, tmp_path):
    rng = np.random.default_rng(0)
    order = ("middle", "high", "low")
    arrays = {"classes": np.array(order)}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.stack([draw(name, rng) for name in order for _ in range(4)])
        arrays[f"{split}_labels"] = np.repeat([0, 1, 2], 4)
    np.savez(tmp_path / "other.npz", **arrays)
    told = call("evaluate", run, "--data", f"npz:{tmp_path / 'other.npz'}", "--json").json
    assert told["classes"] == list(CLASSES)
    assert told["accuracy"] > 0.6


@pytest.mark.promise("C14")
def test_unknown_class_is_refused_by_name(call, run, tmp_path):
    data = write_images(tmp_path / "data", names=("low", "middle"))
    (data / "middle").rename(data / "moddle")
    line = call("evaluate", run, "--data", f"folder:{data}").failed(1)
    assert "class 'moddle' is unknown to the model" in line
    assert "high, low, middle" in line


def test_images_of_the_run_given_again_are_split_as_the_run_split_them(call, images, tmp_path):
    """With another seed the test split would hold images that were trained on."""
    values = recipe(images, tmp_path / "run", train__seed=3, train__epochs=1)
    with open_run(make_recipe(values)) as prepared:
        run_prepared(prepared, tmp_path / "run", resume=False, watcher=None)
    call("evaluate", tmp_path / "run", "--data", f"folder:{images}", "--out", tmp_path / "e").succeeded()
    with (tmp_path / "e" / "predictions.csv").open() as handle:
        assert {row["image"] for row in csv.DictReader(handle)} == set(prepared.dataset.test.ids)


def test_base_is_evaluated_with_its_own_head(call, run):
    """small-cnn has ten outputs of no name; the first three are taken in the order of the classes."""
    told = call("evaluate", run, "--base", "--json").json
    assert told["model"] == "base"
    assert told["classes"] == [*CLASSES, *(f"output {number}" for number in range(3, 10))]


def test_old_head_is_evaluated_on_the_adapted_features(call, run):
    told = call("evaluate", run, "--old-head", "--json").json
    assert told["model"] == "old-head"
    assert len(told["classes"]) == 10
    assert told["negative_log_likelihood"] != call("evaluate", run, "--base", "--json").json["negative_log_likelihood"]


def test_base_with_too_few_outputs_is_refused(call, run, tmp_path, images):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(convpeft.load_model("small-cnn", num_classes=2).state_dict(), tmp_path / "two.safetensors")
    model = convpeft.load_model("small-cnn", num_classes=2, weights=tmp_path / "two.safetensors")
    convpeft.attach(model, "probe", num_classes=3)
    convpeft.save(model, tmp_path / "adapter", classes=CLASSES)
    line = call("evaluate", tmp_path / "adapter", "--data", f"folder:{images}", "--base").failed(1)
    assert "the base has 2 outputs" in line


def test_runs_are_compared_image_by_image(call, run, other):
    told = call("evaluate", run, "--against", other, "--json").json["against"]
    theirs = json.loads((other / "metrics.json").read_text())["test"]["accuracy"]
    assert told["difference"] == pytest.approx(call("evaluate", run, "--json").json["accuracy"] - theirs)
    assert told["low"] <= told["difference"] <= told["high"]
    assert 0 <= told["mcnemar_p"] <= 1


def test_comparison_is_told_in_a_sentence(call, run, other):
    text = call("evaluate", run, "--against", other).succeeded()
    assert str(other) in text


def test_run_against_itself_differs_by_nothing(call, run):
    told = call("evaluate", run, "--against", run, "--json").json["against"]
    assert (told["difference"], told["low"], told["high"]) == (0.0, 0.0, 0.0)


def test_comparison_on_other_images_is_refused(call, run):
    line = call("evaluate", run, "--split", "train", "--against", run).failed(1)
    assert "was tested on other images" in line


def test_comparison_under_other_labels_is_refused(call, run, tmp_path):
    """Ids such as test/0 are the same in every data set that has no files."""
    shutil.copytree(run, tmp_path / "changed")
    file = tmp_path / "changed" / "predictions.csv"
    lines = file.read_text().splitlines()
    lines[1] = (
        lines[1].replace(",high,", ",low,", 1) if ",high," in lines[1] else lines[1].replace(",low,", ",high,", 1)
    )
    file.write_text("\n".join(lines).replace("middle", "muddle"))
    assert "was tested on other images" in call("evaluate", run, "--against", tmp_path / "changed").failed(1)


UNREADABLE = "predictions.csv: cannot be read ("
OTHERS = "was tested on other images, so the two cannot be paired."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, UNREADABLE),
        (b"", OTHERS),
        (b"image,label\n", OTHERS),
        (b"image,label\nx,y\n", UNREADABLE),
        (b"\xff\xfe\n\xff", UNREADABLE),
        (b'image,"label\n', OTHERS),
    ],
)
def test_comparison_with_what_is_no_run_is_one_line(call, run, tmp_path, content, said):
    if content is not None:
        (tmp_path / "predictions.csv").write_bytes(content)
    line = call("evaluate", run, "--against", tmp_path).failed(1)
    assert str(tmp_path) in line
    assert said in line
    assert said == OTHERS or "--against takes a run's directory." in line


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("nowhere",), 1, "nowhere: holds no adapter"),
        (("RUN", "--split", "tset"), 2, "Did you mean 'test'?"),
        (("RUN", "--data", "fodler:x"), 2, "Did you mean 'folder:PATH'?"),
        (("RUN", "--data", "folder:nowhere"), 1, "nowhere"),
        (("RUN", "--base", "--old-head"), 2, "exclude each other"),
        (("RUN", "--weights", "nowhere.safetensors"), 1, "nowhere.safetensors"),
        (("RUN/adapter",), 2, "is no run, so it tells no images. Give --data."),
        (("RUN", "--dta", "x"), 2, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistake_is_one_line(call, run, tmp_path, monkeypatch, words, status, line):
    monkeypatch.chdir(tmp_path)
    assert line in call("evaluate", *(word.replace("RUN", str(run)) for word in words)).failed(status)


def test_damaged_adapter_is_one_line(call, run, tmp_path):
    shutil.copytree(run, tmp_path / "damaged")
    file = tmp_path / "damaged" / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "is not the one that was saved" in call("evaluate", tmp_path / "damaged").failed(1)


def test_adapter_on_other_weights_is_refused(call, run, tmp_path):
    from safetensors.torch import save_file

    save_file(convpeft.load_model("small-cnn").state_dict(), tmp_path / "other.safetensors")
    line = call("evaluate", run, "--weights", tmp_path / "other.safetensors").failed(1)
    assert "made for the base" in line
