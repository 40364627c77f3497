"""One process trains into a directory; what a dead one has left there is taken over, and said."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from convpeft.errors import RunError
from convpeft.training import locking
from convpeft.training.locking import LOCK, lock_run

pytestmark = pytest.mark.promise("F07")

HOLD = """
import os, sys, time
from pathlib import Path
from convpeft.training.locking import lock_run
with lock_run(Path(sys.argv[1])) as note:
    if sys.argv[2:] and os.fork() == 0:
        time.sleep(2)  # as a loader of a killed run does
        os._exit(0)
    print(note, flush=True)
    time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from convpeft.errors import RunError
from convpeft.training.locking import lock_run
out = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = 0
for _ in range(50):
    try:
        with lock_run(out):
            (out / "mine").open("x").close()  # fails where another is inside
            time.sleep(0.001)
            (out / "mine").unlink()
            won += 1
    except RunError:
        pass
print(won)
"""


def start(code: str, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "None\n"
    yield process
    process.kill()
    process.communicate()


def write_owner(out: Path, **keys) -> None:
    me = {"pid": os.getpid(), "host": locking._me().host, "boot": locking._me().boot}
    (out / LOCK).write_text(json.dumps(me | keys))


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_is_gone_after_the_block(tmp_path):
    with lock_run(tmp_path) as note:
        assert note is None
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_lock_is_gone_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock_run(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with lock_run(tmp_path) as note:
        assert note is None


def test_second_process_is_refused_with_owner_and_remedy(tmp_path, holder):
    with pytest.raises(RunError) as caught, lock_run(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: process {holder.pid} trains into it. Wait for its end, stop it with `kill {holder.pid}`, "
        "or give another --out."
    )
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid


def test_lock_held_by_a_process_that_has_not_told_who_it_is_is_respected(tmp_path, holder):
    assert holder.poll() is None
    (tmp_path / LOCK).write_bytes(b"")  # as between taking the lock and writing the owner
    with pytest.raises(RunError) as caught, lock_run(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: another process trains into it. Wait for its end, or give another --out."
    )


def test_second_run_in_another_thread_is_refused(tmp_path):
    seen: list[str] = []

    def try_it() -> None:
        try:
            with lock_run(tmp_path):
                seen.append("held")
        except RunError as error:
            seen.append(str(error))

    with lock_run(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(seen) == 1
    assert f"process {os.getpid()} trains into it" in seen[0]


def test_lock_of_a_killed_process_is_taken_over_and_said(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with lock_run(tmp_path) as note:
        assert note == f"{tmp_path}: took over the lock of process {holder.pid}, which has ended."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("noticed", [True, False], ids=["its parent knows", "its parent has not noticed"])
def test_lock_that_the_loaders_of_a_killed_process_hold_is_waited_for(tmp_path, noticed):
    holder = start(HOLD, tmp_path, "with a child")
    assert holder.stdout.readline() == "None\n"
    holder.send_signal(signal.SIGKILL)
    if noticed:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays in the table of processes
    with lock_run(tmp_path) as note:
        assert f"process {holder.pid}, which has ended" in note
    holder.communicate()


def test_lock_file_that_its_owner_removes_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    """Between opening and locking: the file is locked, but the next process would make another."""
    real, opened = locking._try_lock, []

    def late(descriptor: int) -> bool:
        if not opened:
            (tmp_path / LOCK).unlink()
        opened.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(locking, "_try_lock", late)
    with lock_run(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("keys", [{"boot": "another", "host": "elsewhere"}, {"boot": "", "host": "elsewhere"}], ids=str)
def test_lock_of_another_machine_is_not_taken_over(tmp_path, keys):
    write_owner(tmp_path, pid=7, **keys)
    with pytest.raises(RunError) as caught, lock_run(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: process 7 on elsewhere trains into it. Wait for its end; "
        f"if it has ended, delete {tmp_path / LOCK}."
    )
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 7


@pytest.mark.parametrize("keys", [{"boot": "before"}, {"host": "another container"}], ids=str)
def test_lock_of_this_machine_is_taken_over_after_a_restart(tmp_path, monkeypatch, keys):
    monkeypatch.setattr(locking, "_me", lambda: locking._Owner(os.getpid(), "here", "now"))
    write_owner(tmp_path, **{"pid": 7, "host": "here", "boot": "now"} | keys)
    with lock_run(tmp_path) as note:
        assert note is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b"{}", b'{"pid": "x", "host": "a", "boot": "b"}', b'{"pid": -1, "host": "a", "boot": "b"}'],
)
def test_lock_file_that_names_nobody_is_taken(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with lock_run(tmp_path) as note:
        assert note is None


@pytest.mark.parametrize("alive", [True, False])
def test_file_system_without_locks_goes_by_the_process(tmp_path, monkeypatch, alive):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_owner(tmp_path, pid=os.getpid() if alive else dead())
    if not alive:
        with lock_run(tmp_path) as note:
            assert "which has ended" in note
        return
    with pytest.raises(RunError, match=f"process {os.getpid()} trains into it"), lock_run(tmp_path):
        pass


def test_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"nowhere: cannot be written \(No such file or directory\)"):  # noqa: SIM117
        with lock_run(tmp_path / "nowhere"):
            pass


@pytest.mark.promise("F04")
def test_lock_that_finds_no_room_names_the_directory(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwrite", refuse)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"), lock_run(tmp_path):
        pass


def test_of_several_processes_at_once_one_is_inside(tmp_path):
    """Takes and gives back as fast as it can, so that files are removed while others open them."""
    processes = [start(RACE, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    outcomes = []
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        outcomes.append(int(out))
    assert sum(outcomes) > 0
    assert list(tmp_path.iterdir()) == []
