"""`convpeft train`: options, recipes, precedence, and one line for every mistake."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from convpeft.adapter_file import read_adapter
from convpeft.training import make_recipe, read_recipe
from tiny import files_below, recipe

FAST = ("--epochs", "1", "--batch-size", "6", "--set", "data.test_fraction=0.25", "--set", "data.val_fraction=0.25")


@pytest.fixture
def start(call, images):
    """`convpeft train` on the tiny images."""
    return lambda *words: call("train", "--model", "small-cnn", "--data", f"folder:{images}", *words)


@pytest.fixture
def planned(monkeypatch, start):
    """The recipe that a command line comes to; nothing is trained."""
    seen = []
    monkeypatch.setattr("convpeft.commands.training.train_recipe", lambda recipe, **_: seen.append(recipe))

    def plan(*words):
        start(*words).succeeded()
        return seen[-1]

    return plan


def test_train_leaves_a_run_and_prints_a_summary(start, tmp_path):
    text = start("--out", tmp_path / "run", "--method", "lora", "--rank", "2", *FAST).succeeded()
    assert {"recipe.toml", "report.html", "adapter/adapter_config.json"} <= files_below(tmp_path / "run")
    assert text.count("epoch   1") == 1
    for word in ("test accuracy", "trained parameters", "peak memory", "adapter size", str(tmp_path / "run")):
        assert word in text
    assert "\x1b" not in text  # no terminal, no colours and no bar


def test_train_prints_json_and_nothing_else(start, tmp_path):
    outcome = start("--out", tmp_path / "run", "--json", *FAST)
    assert outcome.json["test"]["n"] == 6
    assert outcome.json == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert outcome.err == ""


def test_command_is_told_as_it_can_be_typed_again(start, tmp_path):
    out = tmp_path / "with space"
    told = start("--out", out, "--json", *FAST).json["command"]
    assert told[:2] == ["convpeft", "train"]
    assert str(out) in told
    assert f"'{out}'" in (out / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")


@pytest.mark.parametrize("words", [("--rank", "4"), ("--rank=4",), ("--set", "method.rank=4")])
def test_option_of_the_method_is_taken_in_every_form(planned, words):
    assert planned(*words).method.options == {"rank": 4}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--rslora",), {"rslora": True}),
        (("--rslora", "--rank", "3"), {"rslora": True, "rank": 3}),
        (("--rslora", "false"), {"rslora": False}),
        (("--alpha", "0.5"), {"alpha": 0.5}),
        (("--method", "bitfit", "--create"), {"create": True}),
        (("--set", "method.name=bitfit", "--create"), {"create": True}),
    ],
)
def test_options_have_the_types_of_their_words(planned, words, options):
    assert planned(*words).method.options == options


def test_sites_are_given_one_by_one_or_with_commas(planned):
    section = planned(
        "--include", "conv,linear", "--include", "head", "--exclude", "conv1", "--also-train", "conv2"
    ).method
    assert section.include == ["conv", "linear", "head"]
    assert section.exclude == ["conv1"]
    assert section.also_train == ["conv2"]


def test_options_of_mixed_methods_carry_their_names(planned):
    words = ("--lora.rank", "3", "--lora.include", "conv", "--bitfit.create", "--residual-serial.own-norm", "false")
    recipe = planned("--method", "lora+bitfit+residual-serial", *words)
    assert recipe.method.options == {
        "lora": {"rank": 3, "include": ["conv"]},
        "bitfit": {"create": True},
        "residual-serial": {"own_norm": False},
    }


def test_mixed_methods_are_trained_saved_and_evaluated(call, start, tmp_path):
    words = ("--method", "lora+adalora+residual-serial", "--lora.rank", "2", "--adalora.target-rank", "2")
    start("--out", tmp_path / "run", *words, *FAST).succeeded()
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    evaluated = call("evaluate", tmp_path / "run", "--json").json
    assert evaluated["confusion"] == trained["test"]["confusion"]
    again = make_recipe(read_recipe(tmp_path / "run" / "recipe.toml"))
    assert again.method.options == {"lora": {"rank": 2}, "adalora": {"target_rank": 2}}


def test_option_of_no_mixed_method_is_refused_with_the_nearest(start, tmp_path):
    line = start("--out", tmp_path / "run", "--method", "lora+bitfit", "--lora.rnak", "3").failed(2)
    assert "--lora.rnak is no option of train or of method 'lora+bitfit'. Did you mean 'lora.rank'" in line


def test_norm_and_rank_policy_are_options(planned):
    section = planned("--norm", "adapt", "--rank-policy", "error").method
    assert (section.norm, section.rank_policy) == ("adapt", "error")


@pytest.mark.promise("B06")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--rnak", "4"), "--rnak is no option of train or of method 'lora'. Did you mean 'rank'?"),
        (("--epoch", "4"), "--epoch is no option of train or of method 'lora'. Did you mean 'epochs'?"),
        (("--includ", "conv"), "Did you mean 'include'?"),
        (("--method", "bitfit", "--rank", "4"), "--rank is no option of train or of method 'bitfit'."),
        (("--method", "lroa"), "Did you mean 'lora'?"),
        (("--lr", "nan"), "train.lr=nan"),
        (("--lr", "-1"), "train.lr=-1.0"),
        (("--lr", "fast"), "Invalid value for '--lr'"),
        (("--epochs", "0"), "train.epochs=0"),
        (("--epochs",), "'--epochs' requires an argument"),
        (("--rank", "0"), "rank=0"),
        (("--rank", "many"), "rank='many' is not int"),
        (("--rank",), "rank=True is not int"),
        (("resnet18",), "'resnet18' is not understood here"),
        (("-x", "3"), "'-x' is not understood here"),
        (("--set", "train.epochs"), "expected KEY=VALUE"),
        (("--set", "train.epoch=3"), "Did you mean 'epochs'?"),
        (("--set", "train=3"), "train=3"),
        (("--set", "train=3", "--set", "train.lr=1"), "'train' is a value in the recipe, not a section"),
        (("--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("--data", "fodler:x"), "Did you mean 'folder:PATH'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_one_line_and_status_2(start, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in start("--out", "run", *words).failed(2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--data", "folder:nowhere"), "nowhere"),
        (("--model", "small-cn"), "Did you mean 'small-cnn'?"),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--from", "nowhere"), "nowhere: holds no adapter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_failure_is_one_line_and_status_1(start, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in start("--out", "run", *words).failed(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--model", "small-cnn"), ("--data", "folder:x")])
def test_missing_model_or_data_is_asked_for(call, words):
    line = call("train", *words).failed(2)
    assert "is missing" in line
    assert ("--data" if words[0] == "--model" else "--model") in line


def test_unknown_command_is_one_line_with_the_nearest(call):
    line = call("tarin").failed(2)
    assert "tarin" in line
    assert "train" in line


def test_directory_that_is_there_is_refused(start, tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert "exists already. Give another --out, or --resume" in start("--out", tmp_path).failed(1)


def test_recipe_file_with_a_section_that_is_a_value_is_refused(call, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('model = "small-cnn"\nmethod = "lora"\n')
    assert "'model' is a value in the recipe, not a section" in call("train", "--config", file, "--model", "x").failed(
        2
    )
    assert "'method' is a value in the recipe, not a section" in call("train", "--config", file, "--rank", "2").failed(
        2
    )
    assert f"{file}: model='small-cnn': is a value, not a section" in call("train", "--config", file).failed(2)


@pytest.mark.promise("B06")
def test_key_given_twice_in_a_recipe_is_refused(call, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[train]\nlr = 1\nlr = 2\n")
    assert "cannot be read as TOML" in call("train", "--config", file).failed(2)


def test_set_comes_before_options_and_options_before_the_recipe_file(planned, images, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(make_recipe(recipe(images, tmp_path / "from-file")).to_toml())
    plan = planned("--config", file, "--epochs", "7", "--lr", "0.5", "--rank", "3", "--set", "train.lr=0.25")
    assert plan.train.batch_size == 6  # the file's
    assert plan.train.epochs == 7  # the option's
    assert plan.train.lr == 0.25  # --set's
    assert plan.method.options == {"rank": 3}
    assert plan.out == str(tmp_path / "from-file")
    assert planned("--config", file, "--rank", "3", "--set", "method.rank=5").method.options == {"rank": 5}


def test_recipe_of_a_run_repeats_it(call, run, tmp_path):
    call("train", "--config", run / "recipe.toml", "--out", tmp_path / "again").succeeded()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / "adapter" / name).read_bytes() == (run / "adapter" / name).read_bytes()


def test_dry_run_shows_the_sites_and_writes_nothing(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = start("--rank", "2", "--dry-run").succeeded()
    for path in ("conv1", "conv2", "projection", "classifier"):
        assert path in text
    assert "parameters trained" in text
    assert list(tmp_path.iterdir()) == []


def test_dry_run_tells_programs_what_would_be_trained(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = start("--rank", "2", "--dry-run", "--json").json
    # Two matrices a layer of rank 2, and the new head of three classes.
    layers = {"conv1": 2 * (32 + 9), "conv2": 2 * (64 + 288), "projection": 2 * (128 + 3136), "classifier": 3 * 129}
    assert told["layers"] == layers
    assert told["trainable"] == sum(layers.values())
    assert told["classes"] == ["high", "low", "middle"]
    assert list(tmp_path.iterdir()) == []


def test_from_goes_on_from_an_adapter(start, run, tmp_path):
    start("--from", run, "--out", tmp_path / "warm", *FAST).succeeded()
    file = read_adapter(tmp_path / "warm")
    assert file.config["options"]["rank"] == 2  # the adapter's own, not the method's default
    assert read_recipe(tmp_path / "warm" / "recipe.toml")["warm_start"] == str(run)


def test_from_with_another_method_is_refused(start, run, tmp_path):
    line = start("--from", run, "--method", "bitfit", "--out", tmp_path / "warm").failed(2)
    assert "method.name='bitfit': the adapter to go on from" in line


def test_resume_of_a_finished_run_leaves_the_same_adapter(call, run, tmp_path):
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    call("train", "--resume", run).succeeded()
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("words", [("--lr", "3"), ("--rank", "3"), ("--set", "train.lr=3"), ("--out", "elsewhere")])
def test_resume_takes_no_other_option(call, run, words):
    assert "goes on with the run's own recipe" in call("train", "--resume", run, *words).failed(2)


def test_resume_of_what_is_no_run_is_one_line(call, tmp_path):
    assert "nowhere/recipe.toml: cannot be read" in call("train", "--resume", tmp_path / "nowhere").failed(2)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, place):
    from convpeft.cli import main
    from convpeft.errors import OptionError

    words = ["train", "--model", "small-cnn", "--data", "fodler:x", "--dry-run"]
    words.insert(len(words) if place == -1 else place, "--debug")
    with pytest.raises(OptionError, match="fodler"):
        main(words)


def test_fault_of_ours_is_one_line_too(start, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("convpeft.commands.training.train_recipe", fail)
    assert "ZeroDivisionError: division by zero. See where with --debug." in start().failed(1)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_too_little_memory_names_the_remedy(start, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("convpeft.commands.training.train_recipe", fail)
    assert "Lower train.batch_size" in start().failed(1)


def test_interruption_says_how_to_go_on(start, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("convpeft.commands.training.train_recipe", fail)
    assert "interrupted. Go on with `convpeft train --resume RUN`." in start().failed(130)


@pytest.mark.promise("F03")
def test_interrupted_process_is_resumed_to_the_same_adapter(call, images, tmp_path):
    """Ctrl-C in the middle of a real process, after an epoch was written."""
    values = recipe(images, tmp_path / "cut", train__epochs=8)
    (tmp_path / "recipe.toml").write_text(make_recipe(values).to_toml())
    command = [sys.executable, "-m", "convpeft", "train", "--config", str(tmp_path / "recipe.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not (tmp_path / "cut" / "checkpoints" / "last.previous").is_dir() and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    where, _, remedy = err.partition(". ")
    assert re.fullmatch(r"convpeft: stopped by SIGINT (in epoch \d, after batch \d|after epoch \d)", where)
    assert remedy == f"Go on with `convpeft train --resume {tmp_path / 'cut'}`.\n"

    text = call("train", "--resume", tmp_path / "cut").succeeded()
    assert text.count("\nepoch ") < 8
    call("train", "--config", tmp_path / "recipe.toml", "--out", tmp_path / "whole").succeeded()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "cut/adapter" / name).read_bytes() == (tmp_path / "whole/adapter" / name).read_bytes()
