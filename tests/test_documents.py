"""What the README and CONTRIBUTING tell people to type works as it stands there."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import convpeft
from convpeft.adapters import METHODS

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Return the words of every convpeft command in the shell blocks of a text."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0] == "convpeft"]


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(README, "python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "letters-adapter" / "adapter_model.safetensors").is_file()
    assert isinstance(names["digits"], torch.Tensor) and names["digits"].shape[1] == 10
    assert isinstance(names["plain"], nn.Module) and names["plain"](torch.rand(2, 1, 28, 28)).shape == (2, 26)


RESULTS = re.findall(r"^\| [^|]+ \| ([^|]+) \| \[[^\]]+\]\((docs/results/[^)]+)\) \|$", README, flags=re.MULTILINE)
FIGURE = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])")


@pytest.mark.parametrize(("found", "page"), RESULTS, ids=[page for _, page in RESULTS])
def test_readme_figures_of_results_are_on_the_pages_they_come_from(found: str, page: str):
    told = set(FIGURE.findall((REPOSITORY / page).read_text(encoding="utf-8")))
    assert set(FIGURE.findall(found)) <= told


@pytest.mark.parametrize("command", sorted({words[0] for words in commands(README)}))
def test_readme_options_exist(command: str):
    used = {word for words in commands(README) if words[0] == command for word in words if word.startswith("--")}
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    result = subprocess.run(
        [sys.executable, "-m", "convpeft", command, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert used <= set(re.findall(r"--[a-z][a-z-]*", result.stdout))


@pytest.fixture
def contributed_method(tmp_path: Path) -> Iterator[str]:
    """The method of CONTRIBUTING's diff, registered for the length of a test."""
    (diff,) = blocks(CONTRIBUTING, "diff")
    source = diff.split("+++ src/convpeft/methods/gain.py\n")[1].split("+++ ")[0]
    path = tmp_path / "gain.py"
    path.write_text(re.sub(r"^\+", "", source, flags=re.MULTILINE), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("gain", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield "gain"
    del METHODS["gain"]


def test_contributed_method_follows_its_formula(contributed_method: str):
    layer = nn.Conv2d(4, 6, 3)
    weight = layer.weight.detach().clone()
    net = convpeft.attach(nn.Sequential(layer), contributed_method, include=["conv"], step=0.5)
    (gain,) = convpeft.trainable_parameters(net)
    torch.nn.init.normal_(gain)
    expected = weight * (1 + 0.5 * gain.detach())[:, None, None, None]
    torch.testing.assert_close(convpeft.merged(net)[0].weight.detach(), expected)
