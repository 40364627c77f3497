"""Options are checked before any work: a whole process refuses a wrong one in under two seconds."""

import subprocess
import sys
import time

import pytest

from measuring import counted, measured

pytestmark = pytest.mark.promise("B06")
LIMIT = 2.0  # seconds, start-up and all
GOOD = ("--model", "small-cnn", "--data", "folder:x")


def refuse(*words: object) -> tuple[str, float]:
    """The one line that it says, and how long the quickest of two takes: a busy machine does not decide."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        command = [sys.executable, "-m", "convpeft", "train", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
        if seconds[-1] < LIMIT:
            break
    return done.stderr, min(seconds)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--rnak", "4"), "Did you mean 'rank'?"),
        (("--method", "lroa"), "method='lroa' does not exist. Did you mean 'lora'?"),
        (("--set", "train.epoch=3"), "Did you mean 'epochs'?"),
        (("--set", "method.rnak=3"), "method 'lora' has no option 'rnak'. Did you mean 'rank'?"),
        (("--lr", "nan"), "train.lr=nan: input should be a finite number."),
        (("--alpha", "nan"), "method 'lora': alpha=nan is not finite. Give a number."),
        (("--rank", "0"), "method 'lora': rank=0 is too small. Give 1 or more."),
        (("--rank", "many"), "method 'lora': rank='many' is not int. Give a whole number, 1 or more."),
        (("--method", "lora+tsa", "--lora.rank", "0"), "method 'lora': rank=0 is too small. Give 1 or more."),
        (("--epochs", "0"), "train.epochs=0: input should be greater than or equal to 1."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_option_is_refused_at_once_with_the_nearest(words, line):
    said, seconds = refuse(*GOOD, *words)
    assert line in said
    assert seconds < LIMIT
    measured("seconds to a refusal", seconds)
    counted("wrong options")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[train]\nlr = 1\nlr = 2\n", "cannot be read as TOML (Cannot overwrite a value (at line 5"),
        ("[train]\nlr = 1\n[train]\nepochs = 2\n", "cannot be read as TOML"),
        ('[method]\nname = "lora"\nrnak = 2\n', "Did you mean 'rank'?"),
        ('[method]\nname = "lora+bitfit"\n[method.lora]\nrnak = 2\n', "Did you mean 'rank'?"),
    ],
    ids=["key twice", "section twice", "typo", "typo in a mix"],
)
def test_wrong_recipe_is_refused_at_once(tmp_path, text, line):
    file = tmp_path / "recipe.toml"
    file.write_text('model.source = "small-cnn"\ndata.source = "folder:x"\n' + text)
    said, seconds = refuse("--config", file)
    assert line in said
    assert seconds < LIMIT
    measured("seconds to a refusal", seconds)
    counted("wrong options")
