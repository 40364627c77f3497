"""`convpeft push --dry-run`, and every command that takes a run takes one of the hub."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from convpeft.training.recipe import read_recipe
from deployment.hub_server import Hub
from tiny import files_below


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture
def address(run, monkeypatch, tmp_path):
    """The run's adapter on a hub, by its commit."""
    with Hub() as hub:
        hub.believed(monkeypatch, tmp_path / "hub-cache")
        commit = hub.commit("me/bars", {file.name: file.read_bytes() for file in (run / "adapter").iterdir()})
        yield f"hf://me/bars@{commit}"


def test_dry_run_writes_the_folder_beside_the_run_and_shows_the_card(call, copied):
    text = call("push", copied, "me/bars", "--dry-run").succeeded()
    folder = copied.with_name("run-push")
    assert files_below(folder) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "confusion.png"}
    assert (folder / "README.md").read_text() in text
    assert "Nothing was uploaded" in text


def test_name_of_no_repository_is_wrong_usage(call, run):
    assert "'bars' is no repository on the hub. Write USER/NAME." in call("push", run, "bars").failed(2)


def test_push_of_what_is_no_run_is_one_line(call, tmp_path):
    assert "holds no adapter" in call("push", tmp_path, "me/bars").failed(1)


def test_address_is_not_pushed(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = call("push", "hf://me/bars@v1", "me/other", "--dry-run").failed(2)
    assert "hf://me/bars@v1: is on the hub already. Give a run or an adapter on this machine" in line
    assert not list(tmp_path.iterdir())


def test_predict_takes_an_address(call, run, images, address):
    here, there = call("predict", run, images / "low", "--json"), call("predict", address, images / "low", "--json")
    assert there.json == here.json


def test_evaluate_takes_an_address_with_data(call, images, address):
    told = call("evaluate", address, "--data", f"folder:{images}", "--json").json
    assert told["n"] == 24
    assert address.rpartition("@")[2] in told["run"]


def test_inspect_takes_an_address(call, run, address):
    assert call("inspect", address, "--json").json == call("inspect", run, "--json").json


def test_merge_takes_an_address(call, run, address, tmp_path):
    call("merge", run, "--out", tmp_path / "here.safetensors").succeeded()
    call("merge", address, "--out", tmp_path / "there.safetensors").succeeded()
    here, there = (load_file(tmp_path / f"{name}.safetensors") for name in ("here", "there"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_check_takes_an_address(call, address):
    assert "passed" in call("check", "--adapter", address).succeeded()


def test_training_goes_on_from_an_address_and_records_its_commit(call, images, address, tmp_path):
    """A name that moves is told and written with the commit that it stood for."""
    repository, _, commit = address.partition("@")
    words = ["--model", "small-cnn", "--data", f"folder:{images}", "--epochs", "1", "--out", tmp_path / "new"]
    outcome = call("train", *words, "--from", repository)
    outcome.succeeded()
    assert f"{repository} is now {repository}@{commit}" in outcome.err
    assert read_recipe(tmp_path / "new" / "recipe.toml")["warm_start"] == address


def test_address_that_is_none_is_one_line(call, images):
    assert "is no address of the hub" in call("predict", "hf://../x", images).failed(1)
