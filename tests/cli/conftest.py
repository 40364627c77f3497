"""The command line in this process, and one run that the tests look at."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import convpeft
from convpeft.cli import main
from tiny import recipe, write_images


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed(self, status: int) -> str:
        """Check that it failed with this status and one line, and return the line."""
        assert self.status == status, self
        assert self.out == ""
        assert self.err.startswith("convpeft: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err

    def succeeded(self) -> str:
        """Check that it succeeded and return what it printed."""
        assert self.status == 0, self
        assert "Traceback" not in self.err
        return self.out


@pytest.fixture
def call(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Run a command as the shell would."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/convpeft", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of 24 pictures in three classes."""
    return write_images(tmp_path_factory.mktemp("images") / "pictures")


@pytest.fixture(scope="session")
def run(images, tmp_path_factory) -> Path:
    """The directory of a whole run on them. Evaluating it adds to it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    convpeft.train(recipe(images, out))
    return out
