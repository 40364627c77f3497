"""What a run says when it goes on after damage, and what it leaves alone."""

import json
import threading
from pathlib import Path

import pytest
import torch

import convpeft
from convpeft.errors import RunError
from convpeft.training.checkpoints import surroundings
from tiny import recipe, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "pictures")


def damage(directory: Path) -> None:
    file = directory / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x10
    file.write_bytes(content)


@pytest.mark.promise("F05")
def test_run_that_goes_on_from_the_checkpoint_before_a_damaged_one_says_so(images, tmp_path):
    values = recipe(images, tmp_path / "run")
    whole = convpeft.train(values)
    before = [file.read_bytes() for file in sorted((whole.out / "adapter").iterdir())]
    last = whole.out / "checkpoints" / "last"
    damage(last)
    result = convpeft.train(values, resume=True)
    line = f"{last}: is damaged. The run goes on from the checkpoint before it."
    assert line in result.notes
    assert line in json.loads((result.out / "metrics.json").read_text())["notes"]
    assert str(last) in (result.out / "report.html").read_text(encoding="utf-8")
    assert [file.read_bytes() for file in sorted((whole.out / "adapter").iterdir())] == before
    assert line not in convpeft.train(values, resume=True).notes  # it was replaced by a good one


def test_run_that_goes_on_elsewhere_says_so(images, tmp_path, monkeypatch):
    values = recipe(images, tmp_path / "run", train__epochs=1)
    assert not any("last bits" in note for note in convpeft.train(values).notes)
    assert not any("last bits" in note for note in convpeft.train(values, resume=True).notes)
    now = surroundings() | {"torch": "9.9"}
    monkeypatch.setattr("convpeft.training.runs.surroundings", lambda: now)
    line = f"the run was begun with torch {torch.__version__} and goes on with 9.9: its last bits may differ."
    assert line in convpeft.train(values, resume=True).notes


def test_run_without_a_good_checkpoint_is_refused_before_any_work(images, tmp_path, monkeypatch):
    values = recipe(images, tmp_path / "run")
    out = convpeft.train(values).out
    for name in ("last", "last.previous"):
        damage(out / "checkpoints" / name)
    monkeypatch.setattr("convpeft.training.runs.prepare_run", lambda _: pytest.fail("work was done"))
    with pytest.raises(RunError, match=r"last: neither the checkpoint nor the previous one is whole"):
        convpeft.train(values, resume=True)
    assert not (out / ".lock").exists()


def test_run_in_a_thread_is_a_run(images, tmp_path):
    seen: list[object] = []

    def work() -> None:
        try:
            seen.append(convpeft.train(recipe(images, tmp_path / "run", train__epochs=1)))
        except BaseException as error:  # shown below
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(seen[0], convpeft.training.Result), seen


def test_directory_with_nothing_but_the_lock_of_a_dead_run_is_empty(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("")
    out = convpeft.train(recipe(images, tmp_path / "run", train__epochs=1)).out
    assert (out / "adapter").is_dir()
    assert not (out / ".lock").exists()
