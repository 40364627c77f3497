"""Whatever goes wrong is one line; --debug shows the traceback; a reader that goes away is no error."""

import subprocess
import sys

import pytest

from convpeft import bare
from forking import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("logs")) as server:
        yield server


BROKEN = """
import convpeft.commands.listing
def show_datasets(*, as_json):
    raise ZeroDivisionError("by\\nzero")
convpeft.commands.listing.show_datasets = show_datasets
from convpeft.cli import main
main({words!r})
"""


def test_fault_of_ours_is_one_line_that_asks_for_debug(server):
    process = server.start(BROKEN.format(words=["datasets"]))
    assert process.wait() == 1
    assert process.said() == "convpeft: ZeroDivisionError: by zero. See where with --debug.\n"


@pytest.mark.parametrize("words", [["--debug", "datasets"], ["datasets", "--debug"]])
def test_debug_shows_the_traceback_of_a_fault(server, words):
    process = server.start(BROKEN.format(words=words))
    assert process.wait() == 1
    assert "Traceback (most recent call last)" in process.said()
    assert "ZeroDivisionError: by\nzero" in process.said()


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_traceback_of_an_error(server, tmp_path, debug):
    process = server.convpeft("inspect", tmp_path / "nowhere", *(["--debug"] if debug else []))
    assert process.wait() == 1
    assert ("Traceback (most recent call last)" in process.said()) == debug
    assert "nowhere: holds no adapter" in process.said()
    assert (process.said().count("\n") == 1) != debug


@pytest.mark.parametrize("words", [("methods",), ("datasets", "--json"), ("--help",)])
def test_reader_that_goes_away_is_no_error(words):
    command = [sys.executable, "-m", "convpeft", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (0, 1)  # 1 is what click makes of it


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("compress", "x"), "convpeft: Missing option '--data'. See `convpeft compress --help`."),
        (
            ("comprss",),
            "convpeft: No such command 'comprss'. Did you mean 'compress', 'compare'? See `convpeft --help`.",
        ),
    ],
    ids=["option", "command"],
)
def test_wrong_usage_names_the_help_to_read(call, words, line):
    assert call(*words).failed(2) == f"{line}\n"


def test_wrong_usage_of_patch_names_the_help_to_read_on_a_device_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convpeft", "patch", "base.onnx"])
    with pytest.raises(SystemExit, match="2"):
        bare.main()
    assert capsys.readouterr().err.endswith("RUN, --out. See `convpeft patch --help`.\n")
