"""A hub on this machine that the client believes to be the real one, and a run to put there."""

from collections.abc import Generator
from pathlib import Path

import pytest

import convpeft
from deployment.hub_server import Hub
from tiny import recipe, write_images


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[Hub]:
    with Hub() as hub:
        hub.believed(monkeypatch, tmp_path / "hub-cache")
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        yield hub


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a whole run on pictures of bars."""
    folder = tmp_path_factory.mktemp("bars")
    convpeft.train(recipe(write_images(folder / "images"), folder / "run"))
    return folder / "run"
