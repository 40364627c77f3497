"""`convpeft train --kernel`, `--autotune`, `--checkpointing` and `--compile` are keys of the recipe."""

import json

import pytest

FAST = ("--epochs", "1", "--batch-size", "6", "--set", "data.test_fraction=0.25", "--set", "data.val_fraction=0.25")


@pytest.fixture
def start(call, images, tmp_path, monkeypatch):
    """`convpeft train` on the tiny images, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = ("train", "--model", "small-cnn", "--data", f"folder:{images}", "--out", tmp_path / "run")
    return lambda *words: call(*base, *words)


@pytest.fixture
def planned(monkeypatch, start):
    """The recipe that a command line comes to; nothing is trained."""
    seen = []
    monkeypatch.setattr("convpeft.commands.training.train_recipe", lambda recipe, **_: seen.append(recipe))

    def plan(*words):
        start(*words).succeeded()
        return seen[-1].train

    return plan


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("--kernel", "side"), "kernel", "side"),
        (("--autotune",), "autotune", True),
        (("--checkpointing",), "checkpointing", True),
        (("--compile",), "compile", True),
        (("--set", "train.layout=contiguous"), "layout", "contiguous"),
        (("--set", "train.fold=false"), "fold", False),
    ],
)
def test_option_is_in_the_recipe(planned, words, key, value):
    assert getattr(planned(*words), key) == value
    assert getattr(planned(), key) != value


def test_unknown_kernel_is_one_line(start):
    assert "train.kernel='fastest'" in start("--kernel", "fastest").failed(2)


def test_checkpointing_without_blocks_is_one_line(start):
    assert "has no blocks from one tensor to one. Set it to false" in start("--checkpointing", *FAST).failed(1)


def test_autotuned_run_says_what_it_chose_and_that_old_measurements_are_damaged(start, tmp_path):
    cache = tmp_path / "cache" / "convpeft" / "kernels.json"
    cache.parent.mkdir(parents=True)
    cache.write_text("{")
    outcome = start("--autotune", "--json", *FAST)
    assert outcome.err.count("\n") == 1
    assert "Kernels are measured anew." in outcome.err
    assert set(outcome.json["kernels"]["sites"].values()) <= {"weight", "side", "hybrid", "fused"}
    assert len(json.loads(cache.read_text())) >= 1
