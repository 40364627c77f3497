"""`from_adapter` builds the base that a file records and nothing else, and runs no code that a file names."""

import sys

import pytest
import torch
from safetensors.torch import save_file

import convpeft
from convpeft.errors import AdapterFileError, ModelError
from convpeft.models import ModelSource, Preprocessing, preprocessing_of, source_of


def pictures(channels: int = 1) -> torch.Tensor:
    return torch.rand(4, channels, 28, 28, generator=torch.Generator().manual_seed(0))


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.normal_(std=0.1, generator=generator)
    return model.eval()


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    file = tmp_path / "base.safetensors"
    save_file(convpeft.load_model("small-cnn", num_classes=4, in_channels=3).state_dict(), file)
    return file


@pytest.fixture
def saved(tmp_path, weights):
    """An adapted model and the file of its adapter."""
    model = convpeft.load_model("small-cnn", num_classes=4, in_channels=3, weights=weights)
    perturbed(convpeft.attach(model, "lora", rank=2, num_classes=6))
    return model, convpeft.save(model, tmp_path / "adapter")


@torch.no_grad()
def test_model_from_the_file_alone_gives_identical_logits(saved):
    model, path = saved
    assert torch.equal(convpeft.from_adapter(path).eval()(pictures(3)), model(pictures(3)))


@torch.no_grad()
def test_base_under_the_adapter_is_the_recorded_one(saved):
    model, path = saved
    built = convpeft.from_adapter(path).eval()
    with convpeft.disabled(built), convpeft.disabled(model):
        assert torch.equal(built(pictures(3)), model(pictures(3)))
        assert built(pictures(3)).shape == (4, 4)


def test_source_of_the_built_model_is_the_recorded_one(saved, weights):
    model, path = saved
    built = source_of(convpeft.from_adapter(path))
    assert built == source_of(model)
    assert built is not None
    assert (built.source, built.num_classes, built.in_channels, built.weights) == ("small-cnn", 4, 3, str(weights))


def test_preprocessing_is_that_of_the_file(saved, tmp_path):
    model, _ = saved
    told = Preprocessing(size=(28, 28), crop=1.0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channels=3)
    convpeft.save(model, tmp_path / "other", preprocessing=told)
    assert preprocessing_of(convpeft.from_adapter(tmp_path / "other")) == told


@torch.no_grad()
def test_adapter_saved_again_from_the_built_model_is_the_same_file(saved, tmp_path):
    _, path = saved
    again = convpeft.save(convpeft.from_adapter(path), tmp_path / "again")
    for file in path.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


@torch.no_grad()
def test_weights_may_lie_elsewhere(saved, weights, tmp_path):
    model, path = saved
    moved = weights.rename(tmp_path / "moved.safetensors")
    assert torch.equal(convpeft.from_adapter(path, weights=moved).eval()(pictures(3)), model(pictures(3)))


def test_weights_that_are_gone_are_named(saved, weights):
    _, path = saved
    weights.unlink()
    with pytest.raises(ModelError, match=r"base\.safetensors"):
        convpeft.from_adapter(path)


def test_other_weights_are_refused(saved, tmp_path):
    _, path = saved
    torch.manual_seed(6)
    save_file(convpeft.load_model("small-cnn", num_classes=4, in_channels=3).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match=r"made for the base [0-9a-f]{16}, this model is [0-9a-f]{16}"):
        convpeft.from_adapter(path, weights=tmp_path / "x.safetensors")


@torch.no_grad()
def test_random_base_is_built_again_from_its_seed(tmp_path):
    torch.manual_seed(11)
    model = convpeft.load_model("small-cnn")
    model._convpeft_source = ModelSource("small-cnn", None, 1, None, True, seed=11)
    perturbed(convpeft.attach(model, "lora", rank=2))
    convpeft.save(model, tmp_path / "adapter")
    torch.manual_seed(12)
    assert torch.equal(convpeft.from_adapter(tmp_path / "adapter").eval()(pictures()), model(pictures()))


def test_random_base_without_a_seed_is_refused_as_another_base(tmp_path):
    torch.manual_seed(11)
    convpeft.save(convpeft.attach(convpeft.load_model("small-cnn"), "lora", rank=2), tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match="made for the base"):
        convpeft.from_adapter(tmp_path / "adapter")


def test_building_does_not_move_the_random_state(saved):
    _, path = saved
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    convpeft.from_adapter(path)
    assert torch.equal(torch.rand(2), expected)


def test_file_that_records_no_base_says_how_to_load_it(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 26 * 26, 3))
    path = convpeft.save(convpeft.attach(model, "lora", rank=1), tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match=r"adapter: records no base\. .* convpeft\.load\(model, '.*adapter'\)"):
        convpeft.from_adapter(path)


def test_path_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterFileError, match="holds no adapter"):
        convpeft.from_adapter(tmp_path / "nowhere")


def test_file_never_leads_to_an_import(tmp_path, saved):
    """A file may claim that its base is a function of a module that lies in wait."""
    model, _ = saved
    (tmp_path / "lies_in_wait.py").write_text("raise SystemExit('this code was run')")
    model._convpeft_source = ModelSource("lies_in_wait:build", None, 1, None, True)
    path = convpeft.save(model, tmp_path / "hostile")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModelError, match=r"a file never leads to an import.*convpeft\.load\(model, path\)"):
            convpeft.from_adapter(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "lies_in_wait" not in sys.modules
