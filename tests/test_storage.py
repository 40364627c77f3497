"""Saving and loading: what the file holds, what is refused, and that nothing is half-written."""

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import convpeft
from contract.networks import randomise
from convpeft.adapter_file import read_adapter


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers).eval()


def adapted(method: str = "lora", **arguments: object) -> nn.Sequential:
    return randomise(convpeft.attach(network(), method, **arguments))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def test_file_is_a_directory_of_two(tmp_path: Path) -> None:
    assert convpeft.save(adapted(), tmp_path / "a" / "b") == tmp_path / "a" / "b"
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o755


def test_file_holds_what_the_adapter_says_it_stores(tmp_path: Path) -> None:
    model = adapted(norm="train", num_classes=3)
    tensors = load_file(convpeft.save(model, tmp_path / "adapter") / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == convpeft.count(model).stored
    size = sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert size <= 4 * convpeft.count(model).stored + 64 * 1024  # promises.md, L03


def test_description_says_method_options_classes_and_versions(tmp_path: Path) -> None:
    model = adapted(rank=3, alpha=6.0, num_classes=3)
    config = config_of(convpeft.save(model, tmp_path / "adapter", classes=["cat", "dog", "ü 漢"]))
    assert config["method"] == "lora"
    assert config["options"] == {
        "rank": 3,
        "alpha": 6.0,
        "rslora": False,
        "plus_ratio": 1.0,
        "init": "zero",
        "learned_scale": False,
        "rank_policy": "clamp",
    }
    assert config["classes"] == ["cat", "dog", "ü 漢"]
    assert (config["norm"], config["num_classes"]) == ("frozen", 3)
    assert config["versions"]["torch"] == torch.__version__


def test_classes_survive_a_round_trip(tmp_path: Path) -> None:
    convpeft.save(adapted(num_classes=2), tmp_path / "one", classes=["cat", "dog"])
    convpeft.save(convpeft.load(network(), tmp_path / "one"), tmp_path / "two")
    assert config_of(tmp_path / "two")["classes"] == ["cat", "dog"]


def test_preprocessing_and_source_are_taken_from_the_model(tmp_path: Path) -> None:
    class Described:
        def __init__(self, **fields: object) -> None:
            self.fields = fields

        def to_dict(self) -> dict:
            return self.fields

    model = adapted()
    model._convpeft_source = Described(source="small-cnn")
    model._convpeft_preprocessing = Described(size=[28, 28])
    config = config_of(convpeft.save(model, tmp_path / "adapter"))
    assert (config["model"], config["preprocessing"]) == ({"source": "small-cnn"}, {"size": [28, 28]})
    config = config_of(convpeft.save(model, tmp_path / "adapter", preprocessing=Described(size=[32, 32])))
    assert config["preprocessing"] == {"size": [32, 32]}


@pytest.mark.promise("C11")
def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(5)
        convpeft.save(adapted(), tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_saving_again_replaces_the_adapter(tmp_path: Path) -> None:
    convpeft.save(adapted(rank=2), tmp_path / "adapter")
    convpeft.save(adapted(rank=4), tmp_path / "adapter")
    assert config_of(tmp_path / "adapter")["options"]["rank"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_directory_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(convpeft.AdapterFileError, match=r"exists and is not an adapter.*Choose another path"):
        convpeft.save(adapted(), tmp_path / "adapter")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(convpeft.AdapterFileError, match="exists and is not an adapter"):
        convpeft.save(adapted(), tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(convpeft.AdapterFileError, match=r"cannot be written.*another path") as refusal:
        convpeft.save(adapted(), tmp_path / "file" / "adapter")
    assert "\n" not in str(refusal.value)


def test_failed_write_keeps_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convpeft.save(adapted(rank=2), tmp_path / "adapter")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convpeft.adapter_file.save_file", fail)
    with pytest.raises(convpeft.AdapterFileError, match=r"cannot be written \(.*No space left"):
        convpeft.save(adapted(rank=4), tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert read_adapter(tmp_path / "adapter").config["options"]["rank"] == 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_adapter_that_is_not_finite_is_not_saved(tmp_path: Path, value: float) -> None:
    model = adapted()
    with torch.no_grad():
        convpeft.trainable_parameters(model)[0].fill_(value)
    with pytest.raises(convpeft.AdapterFileError, match=r"'0:lora.up' holds NaN or infinity and is not saved"):
        convpeft.save(model, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_adapter_with_one_number_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        convpeft.trainable_parameters(model)[0][1, 0] = torch.nan
    with pytest.raises(convpeft.AdapterFileError, match=r"'0:lora.up' holds NaN or infinity and is not saved"):
        convpeft.save(model, tmp_path / "adapter")


def test_wrong_number_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(convpeft.OptionError, match="classes: expected 3 names, one an output of the head, got 2"):
        convpeft.save(adapted(num_classes=3), tmp_path / "adapter", classes=["cat", "dog"])


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\0"])
def test_class_name_that_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(convpeft.OptionError, match="is not printable text"):
        convpeft.save(adapted(num_classes=2), tmp_path / "adapter", classes=[name, "b"])
    assert list(tmp_path.iterdir()) == []


def test_unknown_adapter_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(convpeft.OptionError, match="no adapter is called 'other'"):
        convpeft.save(adapted(), tmp_path / "adapter", name="other")


def test_run_directory_with_an_adapter_is_found(tmp_path: Path) -> None:
    model = adapted()
    convpeft.save(model, tmp_path / "run" / "adapter")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(convpeft.load(network(), tmp_path / "run")(x), model(x))
    assert torch.equal(convpeft.load(network(), str(tmp_path / "run"))(x), model(x))


@pytest.mark.parametrize("path", ["nothing/here", "", "a\0b"])
def test_path_without_an_adapter_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(convpeft.AdapterFileError, match=r"holds no adapter, expected a directory with") as refusal:
        convpeft.load(network(), tmp_path / path)
    assert "\n" not in str(refusal.value)


def test_name_in_use_is_refused(tmp_path: Path) -> None:
    convpeft.save(adapted(), tmp_path / "adapter")
    model = convpeft.load(network(), tmp_path / "adapter")
    with pytest.raises(convpeft.OptionError, match="name='default' is in use on this model"):
        convpeft.load(model, tmp_path / "adapter")


def test_loaded_adapter_goes_on_training(tmp_path: Path) -> None:
    convpeft.save(adapted(), tmp_path / "adapter")
    model = convpeft.load(network(), tmp_path / "adapter")
    assert convpeft.count(model).trainable == convpeft.count(adapted()).trainable
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in convpeft.trainable_parameters(model))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model = adapted()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    convpeft.save(model, tmp_path / "adapter")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_adapter_of_a_writer_killed_between_two_renames_is_found(tmp_path: Path) -> None:
    model = adapted()
    convpeft.save(model, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "adapter").rename(tmp_path / "run" / ".adapter.convpeft-old")
    x = torch.randn(1, 3, 8, 8)
    for path in (tmp_path / "run", tmp_path / "run" / "adapter"):
        assert torch.equal(convpeft.load(network(), path)(x), model(x))
