"""A compressed file: written, read in a new process with equal logits, and refused where it is not right."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import convpeft
from convpeft.errors import AdapterFileError, ModelError, OptionError
from convpeft.models import load_model, preprocessing_of, source_of
from convpeft.models.compressed import KEY, read_compressed


def always(model: nn.Module) -> float:
    return 1.0


@pytest.fixture
def compressed(tmp_path):
    """small-cnn with thin layers of random ranks, and its file."""
    torch.manual_seed(5)
    model = load_model("small-cnn", pretrained=False, num_classes=7, in_channels=2)
    done = convpeft.compress(model.eval(), always, method="tucker-cpd", candidates=3)
    return done, done.save(tmp_path / "thin.safetensors")


IMAGES = torch.linspace(-1, 1, 3 * 2 * 28 * 28).reshape(3, 2, 28, 28)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IMAGES)


def test_loaded_in_a_new_process_it_gives_equal_logits(compressed, tmp_path):
    done, file = compressed
    code = (
        "import sys, torch, convpeft\n"
        f"images = torch.linspace(-1, 1, {IMAGES.numel()}).reshape({tuple(IMAGES.shape)})\n"
        "model = convpeft.load_model('compressed:' + sys.argv[1]).eval()\n"
        "with torch.inference_mode(): torch.save(model(images), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file), str(tmp_path / "x.pt")], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), logits(done.model))


def test_every_way_of_loading_gives_the_same_network(compressed):
    done, file = compressed
    ways = (
        load_model(f"compressed:{file}"),
        load_model("compressed", weights=file),
        load_model("compressed:elsewhere.safetensors", weights=file),
        convpeft.load_compressed(file),
        convpeft.load_compressed(file, base=load_model("small-cnn", pretrained=False, num_classes=7, in_channels=2)),
    )
    assert all(torch.equal(logits(model), logits(done.model)) for model in ways)


def test_loaded_network_tells_preprocessing_and_source(compressed):
    done, file = compressed
    model = load_model(f"compressed:{file}")
    assert preprocessing_of(model) == preprocessing_of(done.model)
    assert source_of(model).source == f"compressed:{file}"
    assert source_of(done.model) is None


def test_adapter_on_it_comes_back_from_its_file_alone(compressed, tmp_path):
    _, file = compressed
    model = convpeft.attach(load_model("compressed", weights=file).eval(), "lora", rank=2, num_classes=3)
    for parameter in convpeft.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    convpeft.save(model, tmp_path / "adapter")
    assert any(path.startswith("conv2.") for path in convpeft.count(model).layers)
    assert torch.equal(logits(convpeft.from_adapter(tmp_path / "adapter")), logits(model))
    file.rename(tmp_path / "moved.safetensors")
    moved = convpeft.from_adapter(tmp_path / "adapter", weights=tmp_path / "moved.safetensors")
    assert torch.equal(logits(moved), logits(model))


def test_another_number_of_classes_gives_a_fresh_head(compressed):
    _, file = compressed
    assert load_model(f"compressed:{file}", num_classes=4)(IMAGES).shape == (3, 4)


def change(file, *, tensors=None, **fields):
    with safe_open(file, framework="pt") as opened:
        told = json.loads(opened.metadata()[KEY])
    save_file(tensors or load_file(file), file, metadata={KEY: json.dumps(told | fields)})


def test_changed_tensor_is_refused(compressed):
    _, file = compressed
    tensors = load_file(file)
    tensors["conv2.2.weight"][0, 0] += 1e-3
    change(file, tensors=tensors)
    with pytest.raises(AdapterFileError, match="the tensors are not those that were written"):
        load_model(f"compressed:{file}")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"version": 2}, AdapterFileError, "has version 2, expected 1. Use the convpeft that wrote it"),
        ({"layers": []}, AdapterFileError, r"layers: expected a table of layers, got \[\]"),
        ({"layers": {"conv1": {"form": "cp", "ranks": [0]}}}, AdapterFileError, "expected a form of cp, tucker"),
        ({"layers": {"conv1": {"form": "x", "ranks": [1]}}}, AdapterFileError, "and its whole ranks, got 'x'"),
        ({"layers": {"conv9": {"form": "cp", "ranks": [1]}}}, ModelError, "the base has no convolution 'conv9'"),
        ({"layers": {"conv2": {"form": "cp", "ranks": [999999]}}}, ModelError, "layer 'conv2' has thin weights"),
        ({"source": None}, ModelError, "names no base. Build the base yourself"),
        ({"source": "small-cnn"}, AdapterFileError, "expected a table of source"),
    ],
)
def test_description_that_is_wrong_is_refused(compressed, fields, error, words):
    _, file = compressed
    change(file, **fields)
    with pytest.raises(error, match=words):
        load_model(f"compressed:{file}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("os:getcwd", "names a Python function, 'os:getcwd', which no file imports"),
        ("compressed:other.safetensors", "names another compressed file as its base. Compress the original"),
    ],
)
def test_base_that_no_file_may_name_is_refused(compressed, source, words):
    _, file = compressed
    change(file, source=source_record(source))
    with pytest.raises(ModelError, match=words):
        load_model(f"compressed:{file}")


def source_record(source: str) -> dict[str, object]:
    return {
        "source": source,
        "num_classes": None,
        "in_channels": 1,
        "weights": None,
        "pretrained": False,
        "seed": None,
    }


def test_plain_weights_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=r"tells nothing of compressed layers\. Give a file that"):
        load_model(f"compressed:{tmp_path / 'a.safetensors'}")


def test_description_that_is_no_json_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", metadata={KEY: "{"})
    with pytest.raises(AdapterFileError, match="its description cannot be read"):
        load_model(f"compressed:{tmp_path / 'a.safetensors'}")


def test_file_that_is_not_named_is_an_error():
    with pytest.raises(ModelError, match=r"model 'compressed': names no file\. Give compressed:FILE"):
        load_model("compressed")


def test_other_endings_are_refused(compressed, tmp_path):
    done, _ = compressed
    with pytest.raises(OptionError, match=r"thin\.pth: expected a name that ends in \.safetensors"):
        done.save(tmp_path / "thin.pth")
    with pytest.raises(ModelError, match=r"compressed file 'thin\.pth': expected a name that ends in"):
        read_compressed("thin.pth")


def test_other_base_is_refused(compressed):
    _, file = compressed
    with pytest.raises(ModelError, match="Build the one that was compressed"):
        convpeft.load_compressed(file, base=nn.Sequential(nn.Conv2d(1, 2, 3)))
