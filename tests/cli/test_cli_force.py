"""`--force` loads an adapter onto another base than its own, says so aloud, and leaves a record of it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import convpeft
from convpeft.training import read_recipe

pytestmark = pytest.mark.promise("C07")
WARNING = "made for the base "
FAST = ("--epochs", "1", "--batch-size", "6")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Weights of another base of the same form."""
    file = tmp_path_factory.mktemp("weights") / "other.safetensors"
    torch.manual_seed(99)
    save_file(convpeft.load_model("small-cnn", pretrained=False).state_dict(), file)
    return file


def commands(run, other, images, tmp_path) -> dict[str, tuple]:
    return {
        "evaluate": ("evaluate", run, "--weights", other, "--json"),
        "predict": ("predict", run, images / "low" / "0.png", "--weights", other, "--json"),
        "merge": ("merge", run, "--weights", other, "--out", tmp_path / "merged.safetensors"),
        "check": ("check", "--adapter", run, "--weights", other, "--json"),
        "check of a model": ("check", "small-cnn", "--adapter", run, "--weights", other, "--json"),
        "train": (
            *("train", "--model", "small-cnn", "--weights", other, "--data", f"folder:{images}", "--from", run),
            *(*FAST, "--out", tmp_path / "run"),
        ),
    }


NAMES = ["evaluate", "predict", "merge", "check", "check of a model", "train"]


@pytest.mark.parametrize("name", NAMES)
def test_adapter_on_another_base_is_refused_without_force(call, run, other, images, tmp_path, name):
    assert WARNING in call(*commands(run, other, images, tmp_path)[name]).failed(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_force_loads_it_with_a_warning_on_standard_error_and_a_record(call, run, other, images, tmp_path, name):
    outcome = call(*commands(run, other, images, tmp_path)[name], "--force")
    assert outcome.status in ((0, 1) if name.startswith("check") else (0,)), outcome
    warnings = [line for line in outcome.err.splitlines() if line.startswith("convpeft: warning: ")]
    assert len(warnings) == 1, outcome.err
    assert WARNING in warnings[0]
    assert "force" in warnings[0]
    if name == "merge":
        with safe_open(tmp_path / "merged.safetensors", framework="pt") as file:
            (told,) = json.loads(file.metadata()["forced"])
    elif name == "predict":
        (told,) = outcome.json[0]["forced"]
    elif name == "train":
        (told,) = [note for note in json.loads((tmp_path / "run/metrics.json").read_text())["notes"] if WARNING in note]
        assert read_recipe(tmp_path / "run" / "recipe.toml")["force"] is True
        assert WARNING in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    else:
        (told,) = outcome.json["forced"]
    assert told == warnings[0].removeprefix("convpeft: warning: ")


def test_report_of_a_forced_evaluation_says_so(call, run, other, tmp_path):
    call("evaluate", run, "--weights", other, "--force", "--out", tmp_path / "e").succeeded()
    assert WARNING in (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert WARNING in json.loads((tmp_path / "e" / "metrics.json").read_text())["forced"][0]


def test_force_on_the_right_base_warns_of_nothing(call, run):
    outcome = call("evaluate", run, "--force", "--json")
    assert outcome.json["forced"] == []
    assert outcome.err == ""


def test_without_force_nothing_is_recorded(call, run):
    assert "forced" not in call("evaluate", run, "--json").json


def test_force_without_an_adapter_is_refused(call):
    line = call("check", "small-cnn", "--force").failed(2)
    assert "--force loads an adapter onto another base. Name one with --adapter RUN" in line


def test_library_warns_too(run, other):
    with pytest.warns(UserWarning, match="Loaded all the same, because force=True"):
        convpeft.from_adapter(run, weights=other, force=True)
