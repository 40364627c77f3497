"""Files and directories appear whole or not at all, wherever the writer fails or is killed."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from convpeft.writing import remove_leftovers, standing, whole_directory, whole_file, write_file

NAMES = ("a", "b")
# Ends the process at the n-th thing that it does to the file system.
KILLED = """
import os, signal, sys
from pathlib import Path
from convpeft.writing import whole_directory, write_file
kind, target, at, left = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 0
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}
def count(event, _):
    global left
    left += event in EVENTS
    if left == at and event in EVENTS:  # killing is an event too
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
if kind == "file":
    write_file(target, b"new")
else:
    with whole_directory(target, keep_as=target.with_name("kept") if kind == "kept" else None) as work:
        for name in "ab":
            (work / name).write_bytes(b"new")
"""


def write_directory(target: Path, content: bytes, *, keep_as: Path | None = None) -> None:
    with whole_directory(target, keep_as=keep_as) as work:
        for name in NAMES:
            (work / name).write_bytes(content)


def held(target: Path) -> set[bytes]:
    """Contents of the files of a directory that has all of them."""
    assert sorted(file.name for file in target.iterdir()) == list(NAMES)
    return {file.read_bytes() for file in target.iterdir()}


def run_killed_at_every_step(kind: str, target: Path, prepare: Callable[[], None]) -> Iterator[int]:
    """Yield after each kill, until a writer comes to its end."""
    for step in range(1, 60):
        prepare()
        command = [sys.executable, "-c", KILLED, kind, str(target), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        yield step


@pytest.mark.promise("F02")
def test_file_of_a_killed_writer_is_the_old_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    seen = set()
    for _ in run_killed_at_every_step("file", target, lambda: target.write_bytes(b"old")):
        seen.add(target.read_bytes())
    remove_leftovers(tmp_path)
    assert seen == {b"old", b"new"}
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.promise("F02")
def test_directory_of_a_killed_writer_is_the_old_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    seen, gaps = set(), 0
    for _ in run_killed_at_every_step("folder", target, lambda: write_directory(target, b"old")):
        gaps += not target.exists()
        seen |= (found := held(standing(target)))
        assert len(found) == 1
        remove_leftovers(tmp_path)
        assert held(target) == found
        assert [each.name for each in tmp_path.iterdir()] == ["folder"]
    assert seen == {b"old", b"new"}
    assert gaps == 1  # the moment between the two renames was among them


@pytest.mark.promise("F02")
def test_next_writer_after_a_kill_needs_no_cleaning(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    write_directory(target, b"old")
    for _ in run_killed_at_every_step("folder", target, lambda: None):
        write_directory(target, b"next")
        assert held(target) == {b"next"}


@pytest.mark.promise("F02")
def test_directory_before_is_kept_under_its_own_name_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    target, kept = tmp_path / "folder", tmp_path / "kept"

    def prepare() -> None:
        write_directory(target, b"older", keep_as=kept)
        write_directory(target, b"old", keep_as=kept)

    for _ in run_killed_at_every_step("kept", target, prepare):
        assert held(target if target.exists() else kept) in ({b"old"}, {b"new"})
    assert held(target) == {b"new"}
    assert held(kept) == {b"old"}


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_failed_replacement_leaves_the_old_directory_and_no_other(tmp_path, monkeypatch, broken) -> None:
    target = tmp_path / "folder"
    write_directory(target, b"old")
    real = getattr(os, broken)

    def fail(*arguments):
        if broken == "rename" and str(arguments[0]).endswith("folder"):  # the first of two renames
            return real(*arguments)
        if broken == "rename" and not str(arguments[0]).endswith("-new"):  # putting it back
            return real(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        write_directory(target, b"new")
    assert held(target) == {b"old"}
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_error_of_the_writer_itself_passes_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_directory(tmp_path / "folder") as work:
        (work / "a").write_bytes(b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file") as work:
        work.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "file") as work:
            work.write_bytes(b"")
            work.chmod(0o600)  # as safetensors leaves it
        with whole_directory(tmp_path / "folder") as work:
            write_file(work / "a", b"")
            (work / "a").chmod(0o600)
    finally:
        os.umask(before)
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder", "folder/a")]
    assert rights == [0o640, 0o750, 0o640]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    write_file(tmp_path / "file", b"x")
    write_directory(tmp_path / "folder", b"x")
    assert calls == ["fsync", "replace", "fsync", "fsync", "fsync", "fsync", "rename", "fsync"]


@pytest.mark.parametrize("path", ["", ".", "/", "nothing/here"])
def test_standing_of_what_is_not_there_is_itself(path: str) -> None:
    assert standing(Path(path)) == Path(path)
