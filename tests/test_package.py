"""The wheel that people install holds everything the sources do, under the same version."""

import email
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from convpeft._version import __version__

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "convpeft"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_ships_every_source_file(wheel: Path):
    expected = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "convpeft/py.typed" in expected
    assert expected == {name for name in names_in(wheel) if name.startswith("convpeft/")}


def test_wheel_ships_the_licence(wheel: Path):
    assert f"convpeft-{__version__}.dist-info/licenses/LICENSE" in names_in(wheel)


def test_wheel_ships_nothing_else(wheel: Path):
    roots = {name.split("/")[0] for name in names_in(wheel)}
    assert roots == {"convpeft", f"convpeft-{__version__}.dist-info"}


def test_wheel_core_is_small(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"convpeft-{__version__}.dist-info/METADATA").decode()
    requirements = email.message_from_string(text).get_all("Requires-Dist", [])
    core = {line.split(">")[0] for line in requirements if "extra ==" not in line}
    assert core == {"torch", "numpy", "safetensors", "rich", "typer"}


def test_installed_version_is_the_one_in_the_sources():
    assert importlib.metadata.version("convpeft") == __version__
