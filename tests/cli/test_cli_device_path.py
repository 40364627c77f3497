"""From a run to a device and back by the command line: every file answers as the run does."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import convpeft
from convpeft.adapter_description import MAP
from convpeft.cli import main
from convpeft.data import ImageBatches
from convpeft.deployment.onnx_file import load_onnx
from convpeft.evaluation.inference import load_classifier
from convpeft.training.preparing import load_recipe_data
from convpeft.training.recipe import make_recipe, read_recipe
from deployment.device import device
from measuring import measured
from tiny import write_images

LOGITS, PROBABILITIES = 1e-4, 1e-4  # promises, C12 and C06
MOST_BEYOND = 64 * 2**10  # bytes of a patch that are not the adapter's
EXACT = ("merged.onnx", "patched.onnx")
SHOWN = 300  # images of the test split to predict


@dataclass(frozen=True)
class Trip:
    """A folder with the run, all files made from it, and images."""

    folder: Path
    pictures: Path
    said: dict[str, str]  # what each export and the patch printed

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def answers(self, name: str) -> list[dict[str, Any]]:
        """Every class of every image with its probability."""
        told = json.loads(command("predict", self.folder / name, self.pictures, "--top", "99", "--json"))
        return [{each["class"]: each["probability"] for each in image["top"]} for image in told]


def command(*words: object) -> str:
    """What a command prints; it has to succeed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert not ended.value.code, err.getvalue()
    return out.getvalue()


def bars(folder: Path, _: Callable[[], Path]) -> tuple[list[object], Path]:
    """Pictures made here, on a residual network with norms and random weights."""
    pictures = write_images(folder / "pictures", count=12)
    return ["--model", "cifar-resnet/20", "--data", f"folder:{pictures}", "--set", "model.pretrained=false"], pictures


def letters(folder: Path, root: Callable[[], Path]) -> tuple[list[object], Path]:
    """EMNIST letters, on the small network trained on MNIST digits."""
    small = ["--model", "small-cnn", "--set", "train.batch_size=64", "--set", "data.limit=6000"]
    digits = ["--data", f"mnist:{root()}", "--set", "model.pretrained=false", "--method", "full", "--epochs", "2"]
    command("train", *small, *digits, "--out", folder / "digits")
    command("merge", folder / "digits", "--out", folder / "digits.safetensors")
    source = f"emnist-letters:{root()}"
    return [*small, "--weights", folder / "digits.safetensors", "--data", source], written(source, folder)


def cifar(folder: Path, root: Callable[[], Path]) -> tuple[list[object], Path]:
    """CIFAR-10, on the ResNet-20 trained on Tiny ImageNet."""
    source = f"cifar10:{root() / 'cifar10'}"
    words = ["--model", "cifar-resnet/20", "--weights", root() / "weights" / "resnet20_tinyimagenet32.safetensors"]
    return [*words, "--data", source, "--set", "data.limit=1000"], written(source, folder)


def written(source: str, folder: Path) -> Path:
    """Images of the test split as files."""
    images = convpeft.data.load_data(source).test.images
    (folder / "pictures").mkdir()
    for place in np.linspace(0, len(images) - 1, SHOWN).astype(int):
        Image.fromarray(images[int(place)].squeeze()).save(folder / "pictures" / f"{place:06}.png")
    return folder / "pictures"


CASES = [
    pytest.param(bars, id="bars"),
    pytest.param(letters, id="emnist-letters", marks=[pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(1800)]),
    pytest.param(cifar, id="cifar10", marks=[pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(1800)]),
]


@pytest.fixture(scope="module", params=CASES)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trip:
    """Train, export in every form, and patch where there is no torch."""
    if request.param is not bars and "slow" not in request.config.getoption("markexpr"):
        pytest.skip("minutes each; run with -m slow")
    folder = tmp_path_factory.mktemp("trip")
    words, pictures = request.param(folder, lambda: request.getfixturevalue("data_root"))
    command("train", *words, "--method", "lora", "--set", "method.rank=4", "--epochs", "2", "--out", folder / "run")
    said = {
        "merged.onnx": command("export", folder / "run", "--to", "onnx", "--out", folder / "merged.onnx"),
        "int8.onnx": command("export", folder / "run", "--quantize", "int8", "--json", "--out", folder / "int8.onnx"),
        "base.onnx": command("export", folder / "run", "--base", "--to", "onnx", "--out", folder / "base.onnx"),
        "map": command("export", folder / "run", "--to", "patch", "--json"),
    }
    done = device("patch", folder / "base.onnx", folder / "run", "--out", folder / "patched.onnx")
    assert done.returncode == 0, done.stderr
    return Trip(folder, pictures, said | {"patched.onnx": done.stdout})


@pytest.mark.promise("C06")
@pytest.mark.parametrize("name", EXACT)
def test_file_predicts_as_the_run(trip: Trip, name: str) -> None:
    """The same class first and every probability within 1e-4."""
    found, wanted = trip.answers(name), trip.answers("run")
    assert len(found) == len(wanted) > 20
    for one, other in zip(found, wanted, strict=True):
        assert next(iter(one)) == next(iter(other))
        assert one.keys() == other.keys()
        gap = max(abs(one[each] - other[each]) for each in one)
        measured(f"largest difference of probabilities, {name}", gap)
        assert gap <= PROBABILITIES


@pytest.mark.promise("C12")
@pytest.mark.parametrize("name", EXACT)
def test_file_has_the_logits_of_the_run(trip: Trip, name: str) -> None:
    """On noise, where nothing is learned and logits are small or large."""
    run, file = load_classifier(trip.run), load_onnx(trip.folder / name)
    x = torch.randn(40, run.preprocessing.channels, *run.preprocessing.size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = run.model.cpu()(x)
    gap = float((file.model(x) - expected).abs().max())
    measured(f"largest difference of logits, {name}", gap)
    assert gap <= LOGITS * max(1.0, float(expected.abs().max()))


def test_patch_is_the_adapter_and_a_small_map(trip: Trip) -> None:
    adapter = {each.name: each.stat().st_size for each in (trip.run / "adapter").iterdir()}
    assert adapter.pop(MAP) == json.loads(trip.said["map"])["bytes"] <= MOST_BEYOND
    assert (
        f"from a patch of {sum(adapter.values()) + json.loads(trip.said['map'])['bytes']:,}"
        in trip.said["patched.onnx"]
    )


def test_eight_bits_tell_the_accuracy_that_their_file_has(trip: Trip) -> None:
    """Before is that of the run's confusion matrix; after is counted here, name by name."""
    told, metrics = json.loads(trip.said["int8.onnx"])["accuracy"], json.loads((trip.run / "metrics.json").read_text())
    confusion = np.array(metrics["test"]["confusion"])
    assert told["before"] == pytest.approx(np.trace(confusion) / confusion.sum())
    dataset, file = (
        load_recipe_data(make_recipe(read_recipe(trip.run / "recipe.toml"))),
        load_onnx(trip.folder / "int8.onnx"),
    )
    right = 0
    with torch.no_grad():
        for images, labels, _ in ImageBatches(dataset.test, file.preprocessing, batch_size=100):
            named = [file.classes[place] for place in file.model(images).argmax(1)]
            right += sum(one == dataset.classes[label] for one, label in zip(named, labels, strict=True))
    assert told["images"] == len(dataset.test)
    assert told["after"] == pytest.approx(right / len(dataset.test))
    metadata = {each.key: each.value for each in onnx.load(trip.folder / "int8.onnx").metadata_props}
    assert json.loads(metadata["convpeft.accuracy"]).items() >= told.items()
    measured("accuracy lost in eight bits", told["drop"])


def test_eight_bits_mostly_predict_as_the_run(trip: Trip) -> None:
    found, wanted = trip.answers("int8.onnx"), trip.answers("run")
    agreed = np.mean([next(iter(one)) == next(iter(other)) for one, other in zip(found, wanted, strict=True)])
    measured("share of images to which eight bits give another class", 1 - float(agreed))
    assert agreed >= 0.9
