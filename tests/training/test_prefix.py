"""Runs train from cached features by themselves where that pays, say so, and go on as they began."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convpeft
from convpeft.errors import ModelError, OptionError, RunError
from convpeft.evaluation.inference import evaluate_split, load_classifier
from convpeft.training import make_recipe, prepare_run
from convpeft.training.prefix import is_over
from convpeft.training.results import Result
from convpeft.training.runs import open_run, run_prepared
from tiny import files_below, recipe, write_images

NOTE = "trains from cached features: "
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "pictures")


def late(images: Path, out: Path, **keys: Any) -> dict[str, Any]:
    """A recipe of a small network whose head alone is trained."""
    return recipe(images, out, **({"model__pretrained": False, "method__include": ["linear"]} | keys))


def quick(values: dict[str, Any], *, resume: bool = False, watcher=None) -> Result:
    with open_run(make_recipe(values), resume=resume) as prepared:
        return run_prepared(prepared, Path(values["out"]), resume=resume, watcher=watcher)


def said(result: Result) -> list[str]:
    """Notes on the prefix cache."""
    return [note for note in result.notes if "cache" in note]


def adapter_bytes(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "adapter").iterdir()}


def losses(result: Result) -> list[float]:
    return [value for row in result.fit.history for value in (row.train_loss, row.val_loss)]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Result:
    return quick(late(images, tmp_path_factory.mktemp("runs") / "run"))


def test_run_that_can_trains_from_features_and_says_what_it_takes(run):
    (note,) = said(run)
    size = 18 * 3136 * 2 / 1e6  # 12 images to train on, 6 to validate on
    assert note == (
        f"trains from cached features: 91% of the network, up to flatten, is computed once for each image and kept in "
        f"half precision, {size:.1f} MB in {run.out / 'prefix-cache'} until the run is finished. "
        "The test runs on the images."
    )
    assert {file for file in files_below(run.out) if "prefix" in file} == {"prefix-cache/facts.json"}


def test_run_from_features_is_nearly_that_from_images(images, run, tmp_path):
    plain = quick(late(images, tmp_path / "plain", train__prefix_cache="off"))
    assert said(plain) == []
    np.testing.assert_allclose(losses(run), losses(plain), rtol=2e-3)
    assert np.array_equal(run.predictions.predicted, plain.predictions.predicted)


def test_test_figures_come_from_the_whole_network_on_images(run):
    again, _ = evaluate_split(load_classifier(run.out), run.dataset, "test")
    assert np.array_equal(again.logits, run.predictions.logits)
    assert "forward" not in run.model.__dict__


def test_same_seed_gives_the_same_bytes_from_features(images, run, tmp_path):
    quick(late(images, tmp_path / "again"))
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(run.out)


@pytest.mark.parametrize(
    "keys",
    [
        {"data__augment": "light"},
        {"train__epochs": 1},
        {"train__objective": "lwf"},
        {"train__checkpointing": True, "model__source": "cifar-resnet/20", "method__include": ["stage:last"]},
        {"method__include": ["conv"]},
        {"data__augment": "light", "train__prefix_views": 2},
    ],
    ids=str,
)
def test_run_that_gains_nothing_is_as_it_was_without_a_word(images, tmp_path, keys):
    quiet = quick(late(images, tmp_path / "auto", **keys))
    assert said(quiet) == []
    if len(keys) == 1:
        quick(late(images, tmp_path / "off", train__prefix_cache="off", **keys))
        assert adapter_bytes(tmp_path / "auto") == adapter_bytes(tmp_path / "off")
    assert not (tmp_path / "auto" / "prefix-cache").exists()


def test_as_many_views_as_epochs_are_the_augmentation_of_each(images, tmp_path):
    keys: dict[str, Any] = {"data__augment": "light", "train__prefix_views": 3}
    cached = quick(late(images, tmp_path / "cached", train__prefix_cache="on", **keys))
    plain = quick(late(images, tmp_path / "plain", train__prefix_cache="off", **keys))
    assert "computed once for each image and each of 3 views" in said(cached)[0]
    np.testing.assert_allclose(losses(cached), losses(plain), rtol=2e-3)


def test_few_views_are_taken_by_themselves_where_they_are_used_twice(images, tmp_path):
    result = quick(late(images, tmp_path / "run", data__augment="light", train__prefix_views=2, train__epochs=4))
    assert "each of 2 views" in said(result)[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"train__prefix_views": 2},
            "train.prefix_views=2: without augmentation an image has one view. "
            "Set data.augment, or leave train.prefix_views out.",
        ),
        (
            {"train__prefix_cache": "on", "data__augment": "light"},
            "train.prefix_cache='on': data.augment='light' makes new images in each epoch. "
            "Set train.prefix_views to the number of views to keep, or data.augment='none'.",
        ),
        (
            {"train__prefix_cache": "on", "train__objective": "lwf"},
            "train.prefix_cache='on': train.objective='lwf' needs the images. Leave one of them out.",
        ),
        (
            {"train__prefix_cache": "on", "train__checkpointing": True},
            "train.prefix_cache='on': train.checkpointing works on whole blocks of the network. Leave one of them out.",
        ),
    ],
    ids=["views", "augment", "lwf", "checkpointing"],
)
def test_recipe_that_cannot_be_meant_is_refused(tmp_path, keys, words):
    with pytest.raises(OptionError) as caught:
        quick(late(tmp_path / "nowhere", tmp_path / "run", **keys))
    assert str(caught.value) == words


def test_several_processes_train_from_the_images(images, tmp_path, monkeypatch):
    monkeypatch.setattr("convpeft.training.prefix.count_processes", lambda: 2)
    assert said(quick(late(images, tmp_path / "run", train__epochs=2))) == []
    with pytest.raises(OptionError, match=r"prefix_cache='on' runs in one process\. Start it without torchrun"):
        quick(late(images, tmp_path / "on", train__prefix_cache="on"))


def test_network_without_such_a_prefix_is_said_or_refused(images, tmp_path, monkeypatch):
    with pytest.raises(ModelError) as caught:
        quick(late(images, tmp_path / "on", method__include=["conv"], train__prefix_cache="on"))
    assert str(caught.value) == (
        "train.prefix_cache='on': the first layer is trained already, or what follows it needs more than numbers of "
        "an image. Set it to 'off'."
    )
    assert not (tmp_path / "on").exists()
    monkeypatch.setattr("convpeft.training.splitting._is_same", lambda *_: False)
    result = quick(late(images, tmp_path / "auto"))
    assert said(result) == ["the prefix cache is not used: the two halves of the network do not add up to it."]


def test_prefix_that_is_mostly_random_is_said(images, tmp_path, monkeypatch):
    monkeypatch.setattr("convpeft.training.prefix._WORTH", 0.95)
    monkeypatch.setattr("convpeft.training.prefix.share_before_training", lambda *_: 1.0)
    (note,) = said(quick(late(images, tmp_path / "auto")))
    assert note == ("the prefix cache is not used: only 91% of the network comes before what is trained or random.")


def free(monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    usage = Usage(0, 0, int(megabytes * 1e6))
    monkeypatch.setattr("convpeft.training.room.shutil.disk_usage", lambda _: usage)


@pytest.mark.promise("F04")
def test_disk_without_room_for_features_is_said_or_refused(images, tmp_path, monkeypatch):
    needed = sum_needed(images, tmp_path / "needed")
    for number, (beside, words) in enumerate([(0.05, "0.1 MB are free beside"), (0.2, "more than half of the 0.2 MB")]):
        free(monkeypatch, needed + beside)
        (note,) = said(quick(late(images, tmp_path / f"auto{number}")))
        assert note.startswith("the prefix cache is not used: the cached features need 0.1 MB")
        assert words in note
        assert not (tmp_path / f"auto{number}" / "prefix-cache").exists()
    free(monkeypatch, needed + 0.05)
    with pytest.raises(RunError) as caught:
        quick(late(images, tmp_path / "on", train__prefix_cache="on"))
    assert str(caught.value).startswith(f"{tmp_path / 'on'}: the cached features need 0.1 MB and ")
    assert str(caught.value).endswith("Free space, choose another --out, or set train.prefix_cache='off'.")
    assert not (tmp_path / "on").exists()
    free(monkeypatch, needed + 0.2)
    assert said(quick(late(images, tmp_path / "on", train__prefix_cache="on")))[0].startswith(NOTE)


def sum_needed(images: Path, out: Path) -> float:
    """Megabytes that the run needs without features."""
    from convpeft.training.room import expected_sizes

    prepared = prepare_run(make_recipe(late(images, out)))
    return sum(expected_sizes(prepared.model, prepared.recipe.train)) / 1e6


@pytest.mark.promise("F04")
def test_disk_that_fills_up_while_features_are_written_is_said_or_refused(images, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convpeft.training.serving.write_features", fail)
    result = quick(late(images, tmp_path / "auto"))
    assert said(result)[-1] == (
        "the prefix cache is not used after all: No space left on device. The run trains from the images."
    )
    quick(late(images, tmp_path / "off", train__prefix_cache="off"))
    assert adapter_bytes(tmp_path / "auto") == adapter_bytes(tmp_path / "off")
    with pytest.raises(RunError, match=r"prefix-cache: cannot be filled \(No space left on device\)\. Set train"):
        quick(late(images, tmp_path / "on", train__prefix_cache="on"))


def test_quota_that_forbids_the_file_is_said(images, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr("convpeft.training.prefix.try_room", fail)
    (note,) = said(quick(late(images, tmp_path / "auto")))
    assert note.endswith("need 0.1 MB and the system refuses as much (Disk quota exceeded).")


class Stop:
    """Interrupts after so many epochs."""

    def __init__(self, epochs: int = 1) -> None:
        self.epochs = epochs

    def step(self, *_: object) -> None:
        pass

    def epoch(self, row: Any) -> None:
        if row.epoch == self.epochs:
            raise KeyboardInterrupt


def cut(values: dict[str, Any]) -> Path:
    with pytest.raises(KeyboardInterrupt):
        quick(values, watcher=Stop())
    return Path(values["out"])


@pytest.mark.promise("F01")
def test_run_cut_off_goes_on_from_its_features_to_the_same_bytes(images, run, tmp_path):
    out = cut(late(images, tmp_path / "cut"))
    assert files_below(out / "prefix-cache") == {"facts.json", "train.f16", "val.f16"}
    result = quick(late(images, out), resume=True)
    assert adapter_bytes(out) == adapter_bytes(run.out)
    assert [note[: len(NOTE)] for note in said(result)] == [NOTE]
    assert files_below(out / "prefix-cache") == {"facts.json"}


@pytest.mark.promise("F05")
def test_damaged_features_of_a_run_that_goes_on_are_said(images, run, tmp_path):
    out = cut(late(images, tmp_path / "cut"))
    (out / "prefix-cache" / "val.f16").write_bytes(b"")
    result = quick(late(images, out), resume=True)
    assert said(result)[1] == f"{out / 'prefix-cache'}: is damaged (its size). It was computed anew."
    assert adapter_bytes(out) == adapter_bytes(run.out)


def test_run_that_was_moved_goes_on_from_its_features(images, run, tmp_path):
    out = cut(late(images, tmp_path / "cut"))
    out.rename(tmp_path / "moved")
    result = quick(late(images, tmp_path / "moved"), resume=True)
    assert len(said(result)) == 1
    assert adapter_bytes(tmp_path / "moved") == adapter_bytes(run.out)


def test_run_that_began_from_images_goes_on_from_images(images, tmp_path, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr("convpeft.training.prefix._WORTH", 2.0)
        out = cut(late(images, tmp_path / "cut"))
    result = quick(late(images, out), resume=True)
    assert said(result) == [
        "the run was begun without the prefix cache, or that was removed: it goes on from the images."
    ]
    quick(late(images, tmp_path / "off", train__prefix_cache="off"))
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "off")


def test_finished_run_that_is_written_again_still_says_what_it_was_trained_from(images, run, tmp_path):
    shutil.copytree(run.out, tmp_path / "copy")
    result = quick(late(images, tmp_path / "copy"), resume=True)
    assert said(result)[0].startswith(NOTE)
    assert adapter_bytes(tmp_path / "copy") == adapter_bytes(run.out)


def test_training_of_unreadable_history_is_not_over():
    checkpoint = namedtuple("Checkpoint", "facts")({"history": [{"epoch": 1}]})
    assert not is_over(checkpoint, make_recipe(recipe(Path("x"), Path("y"))).train)


def test_whole_run_tells_of_its_features_in_metrics_and_report(images, tmp_path):
    result = convpeft.train(late(images, tmp_path / "run", train__epochs=2))
    (note,) = said(result)
    assert note in json.loads((result.out / "metrics.json").read_text())["notes"]
    assert NOTE in (result.out / "report.html").read_text(encoding="utf-8")
