"""One process at a time trains into a run's directory; the lock of a dead one is no obstacle.

The kernel holds the lock and lets go of it when its owner ends, however it ends. What the lock file says names the
owner in an error, and decides where the kernel cannot: on another machine, or on a file system without locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from convpeft.errors import RunError

LOCK = ".lock"
_PATIENCE = 15.0  # seconds; loaders of a dead run notice within five, and hold its lock till then
_LARGEST = 4096  # bytes of a lock file that are read


@dataclass(frozen=True)
class _Owner:
    """Who holds a lock: process, machine, and the boot of that machine, "" where the system tells none."""

    pid: int
    host: str
    boot: str

    def is_elsewhere(self) -> bool:
        """Whether it runs, or ran, on another machine, so that nothing is known of it."""
        me = _me()
        return self.host != me.host and (not me.boot or self.boot != me.boot)

    def is_gone(self) -> bool:
        """Whether the process has ended, or the machine has started anew since."""
        if self.is_elsewhere():
            return False
        if self.boot != _me().boot:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is someone else's
            return False
        return _is_dead(self.pid)


@contextmanager
def lock_run(out: Path) -> Generator[str | None]:
    """Hold a run's directory for the time of the block.

    Yields:
        A line about the dead run whose lock was taken over; None where there was none.

    Raises:
        RunError: If another process holds it, or it cannot be written.
    """
    path = out / LOCK
    try:
        descriptor = _open_locked(path, out)
    except OSError as error:
        raise _unwritable(out, error) from None
    try:
        former = _read(descriptor)
        if former is not None and former.is_elsewhere():
            raise _refusal(out, former)
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(_me())).encode(), 0)
        except OSError as error:
            raise _unwritable(out, error) from None
        try:
            yield None if former is None else f"{out}: took over the lock of process {former.pid}, which has ended."
        finally:
            if _is_at(descriptor, path):
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _open_locked(path: Path, out: Path) -> int:
    """Open the lock file and lock it, in one piece: it may be removed by its owner in between.

    Raises:
        RunError: If another process holds it.
    """
    limit = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        kept = False
        try:
            held = _try_lock(descriptor)
            owner = _read(descriptor)
            if not held and (owner is None or not owner.is_gone() or time.monotonic() > limit):
                raise _refusal(out, owner)
            kept = held and _is_at(descriptor, path)
            if kept:
                return descriptor
        finally:
            if not kept:
                os.close(descriptor)
        time.sleep(0.1)


def _is_dead(pid: int) -> bool:
    """Whether a process has ended and only waits for its parent to notice, as in a container it may do for ever."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return False
    return after_name.split()[:1] in (["Z"], ["X"])


def _try_lock(descriptor: int) -> bool:
    """Whether the kernel gives the lock; where it has none to give, whether no living owner is named."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        owner = _read(descriptor)
        return owner is None or owner.is_gone()
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _read(descriptor: int) -> _Owner | None:
    """The owner that a lock file names; None where it names none, as between making and writing it."""
    try:
        told = json.loads(os.pread(descriptor, _LARGEST, 0))
    except (ValueError, RecursionError):
        return None
    fields = cast(dict[str, Any], told) if isinstance(told, dict) else {}
    pid, host, boot = (fields.get(key) for key in ("pid", "host", "boot"))
    if not isinstance(pid, int) or not 0 < pid < 2**31 or not isinstance(host, str) or not isinstance(boot, str):
        return None
    if not host.isprintable():  # it is shown
        return None
    return _Owner(pid, host, boot)


def _unwritable(out: Path, error: OSError) -> RunError:
    return RunError(f"{out}: cannot be written ({error.strerror}). Choose another --out.")


def _refusal(out: Path, owner: _Owner | None) -> RunError:
    if owner is None:
        return RunError(f"{out}: another process trains into it. Wait for its end, or give another --out.")
    if owner.is_elsewhere():
        return RunError(
            f"{out}: process {owner.pid} on {owner.host} trains into it. Wait for its end; "
            f"if it has ended, delete {out / LOCK}."
        )
    return RunError(
        f"{out}: process {owner.pid} trains into it. Wait for its end, stop it with `kill {owner.pid}`, "
        "or give another --out."
    )


def _me() -> _Owner:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = ""
    return _Owner(os.getpid(), socket.gethostname(), boot)
