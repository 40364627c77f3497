"""`convpeft robustness`: all corruptions or some, published files, and another run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import convpeft
from convpeft.data.corruptions import ALL
from tiny import CLASSES, draw, files_below, recipe


@pytest.fixture(scope="module")
def other(images, tmp_path_factory):
    """A second run on the same images and seed, trained on corruptions."""
    values = recipe(images, tmp_path_factory.mktemp("runs") / "other", data__augment="corrupt:fog,rain")
    convpeft.train(values)
    return Path(values["out"])


@pytest.fixture(scope="module")
def cifar_run(tmp_path_factory):
    """A run on two classes of CIFAR-10's names, and a folder of corrupted files with them."""
    root = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"classes": np.array(["airplane", "automobile"])}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.stack([_square(number % 2, rng) for number in range(12)])
        arrays[f"{split}_labels"] = np.arange(12) % 2
    np.savez(root / "data.npz", **arrays)
    values = recipe(root, root / "run", data__source=f"npz:{root / 'data.npz'}")
    values["data"] = {"source": f"npz:{root / 'data.npz'}"}
    convpeft.train(values)
    (root / "files").mkdir()
    np.save(root / "files" / "labels.npy", np.tile([0, 1, 1, 0], 5))
    for name in ("fog", "snow"):
        np.save(root / "files" / f"{name}.npy", np.stack([_square(k, rng) for k in np.tile([0, 1, 1, 0], 5)]))
    return root / "run", root / "files"


def _square(label: int, rng: np.random.Generator) -> np.ndarray:
    grey = np.pad(draw(CLASSES[2 * label], rng), 2)
    return np.repeat(grey[..., None], 3, axis=2)


def test_every_corruption_is_measured_and_written(call, run):
    text = call("robustness", run, "--severities", "5").succeeded()
    (target,) = (run / "robustness").iterdir()
    assert files_below(target) == {"robustness.json", "report.html", "plots/robustness.png"}
    told = json.loads((target / "robustness.json").read_text())
    assert set(told["corruptions"]) == set(ALL)
    shares = [told["corruptions"][name]["accuracy"] for name in ALL]
    assert told["mca_15"]["accuracy"] == pytest.approx(np.mean(shares[:15]))
    assert told["mca_19"]["accuracy"] == pytest.approx(np.mean(shares[:19]))
    assert told["rain"]["accuracy"] == pytest.approx(shares[19])
    for word in ("mCA-15", "mCA-19", "rain", "clean", "regenerated", str(target / "report.html")):
        assert word in text
    page = (target / "report.html").read_text("utf-8")
    for word in (
        "Accuracy under corruption (regenerated)",
        "Corruption by corruption (regenerated)",
        "made by a formula",
    ):
        assert word in page


def test_clean_accuracy_is_that_of_evaluate(call, run):
    told = call("robustness", run, "--corruptions", "fog", "--severities", "1", "--json").json
    assert told["clean"]["accuracy"] == call("evaluate", run, "--json").json["accuracy"]


def test_measuring_twice_gives_the_same_bytes(call, run, tmp_path):
    for name in ("a", "b"):
        call("robustness", run, "--corruptions", "rain,glass_blur", "--out", tmp_path / name).succeeded()
    first, second = ((tmp_path / name / "robustness.json").read_bytes() for name in ("a", "b"))
    assert first == second


def test_part_is_the_same_as_in_the_whole(call, run):
    whole = call("robustness", run, "--corruptions", "fog,snow,rain", "--json").json["corruptions"]
    part = call("robustness", run, "--corruptions", "rain", "--severities", "2,5", "--json").json["corruptions"]
    assert part["rain"]["by_severity"] == {key: whole["rain"]["by_severity"][key] for key in ("2", "5")}


def test_limit_is_stated(call, run):
    told = call("robustness", run, "--corruptions", "fog", "--limit", "3", "--severities", "1,3", "--json").json
    assert (told["images"], told["of_images"], told["mca_15"]) == (3, 6, None)
    assert "Only 3 of 6 images were measured, stratified by class." in told["notes"]
    assert "Only severities 1, 3: every mean is over these." in told["notes"]


def test_training_and_test_corruptions_are_named_apart(call, other, tmp_path):
    call("robustness", other, "--corruptions", "fog,snow", "--severities", "1", "--out", tmp_path / "e").succeeded()
    told = json.loads((tmp_path / "e" / "robustness.json").read_text())
    assert told["trained_on"] == ["fog", "rain"]
    page = (tmp_path / "e" / "report.html").read_text("utf-8")
    assert "Training corruptions: fog, rain." in page
    assert "Test corruptions: snow, fog." in page
    assert "Mean accuracy over the 1 that it was not trained on" in page


def test_two_runs_are_paired_on_the_same_images(call, run, other):
    told = call("robustness", run, "--corruptions", "fog,rain", "--against", other, "--json").json
    theirs = call("robustness", other, "--corruptions", "fog,rain", "--json").json
    assert told["against"]["corruptions"] == theirs["corruptions"]
    difference = told["against"]["differences"]["all"]
    assert difference["difference"] == pytest.approx(told["all"]["accuracy"] - theirs["all"]["accuracy"])
    assert difference["low"] <= difference["difference"] <= difference["high"]
    assert "regenerated" in difference["sentence"]


def test_runs_with_other_images_are_not_paired(call, run, images, tmp_path):
    values = recipe(images, tmp_path / "run", train__epochs=1)
    values["train"]["seed"] = 5
    convpeft.train(values)
    words = ("robustness", run, "--corruptions", "fog", "--against", tmp_path / "run")
    assert "so the two cannot be measured in pairs. Train both" in call(*words).failed(1)


def test_published_files_are_measured_and_said_to_be_files(call, cifar_run, tmp_path):
    run, files = cifar_run
    text = call("robustness", run, "--data", f"cifar-c:{files}", "--out", tmp_path / "e").succeeded()
    told = json.loads((tmp_path / "e" / "robustness.json").read_text())
    assert told["source"] == "files"
    assert list(told["corruptions"]) == ["snow", "fog"]
    assert told["images"] == 4
    assert told["clean"]["accuracy"] > 0.6
    assert told["all"]["accuracy"] > 0.6  # the files hold clean images of both classes
    assert "regenerated" not in text
    assert "CIFAR-10-C, read from files" in text
    assert "regenerated" not in (tmp_path / "e" / "report.html").read_text("utf-8").lower()


def test_evaluate_reads_published_files_as_one_test_split(call, cifar_run):
    run, files = cifar_run
    told = call("evaluate", run, "--data", f"cifar-c:{files}", "--json").json
    many = call("robustness", run, "--data", f"cifar-c:{files}", "--json").json
    assert told["n"] == 40
    assert told["accuracy"] == pytest.approx(many["all"]["accuracy"])


def test_clean_accuracy_of_files_is_left_out_where_the_images_are_gone(call, cifar_run, tmp_path):
    run, files = cifar_run
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    told = call("robustness", tmp_path / "adapter", "--data", f"cifar-c:{files}", "--json").json
    assert told["clean"] is None


def test_files_have_no_split_and_no_table(call, cifar_run):
    run, files = cifar_run
    line = call("robustness", run, "--data", f"cifar-c:{files}", "--split", "val").failed(2)
    assert "have no part in files that are corrupted already" in line
    line = call("robustness", run, "--data", f"cifar-c:{files}", "--corruptions", "rain").failed(1)
    assert "has no file rain.npy" in line


def test_wrong_names_are_refused_with_the_nearest(call, run):
    assert "Did you mean 'rain'" in call("robustness", run, "--corruptions", "rnai").failed(2)
    assert "severity '7' does not exist" in call("robustness", run, "--severities", "7").failed(2)
    assert "Did you mean 'imagenet'" in call("robustness", run, "--table", "imagnet").failed(2)
    assert "--limit" in call("robustness", run, "--limit", "0").failed(2)


def test_adapter_alone_needs_images(call, run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    line = call("robustness", tmp_path / "adapter").failed(2)
    assert "is no run, so it names no images. Give --data" in line
    line = call("robustness", run, "--corruptions", "fog", "--against", tmp_path / "adapter").failed(2)
    assert "so it names no images to pair. Give --data" in line
