"""An audit hook that notes whatever reading a file must never lead to; for processes of their own, since it stays."""

from __future__ import annotations

import ast
import os
import sys
import typing
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# Always noted, whatever the arguments.
_NEVER = (
    "exec",
    "code.__new__",
    "function.__new__",
    "marshal.load",
    "marshal.loads",
    "pickle.find_class",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.__new__",
    "socket.sendto",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.startfile",
    "os.putenv",
    "os.chdir",
    "os.chroot",
    "pty.spawn",
    "subprocess.Popen",
    "webbrowser.open",
    "urllib.Request",
    "shutil.unpack_archive",
)
_NEVER_FROM = ("ctypes.", "sqlite3.", "http.", "ftplib.", "smtplib.", "telnetlib.", "winreg.", "imaplib.")
# Events whose first arguments are paths that are changed.
_CHANGES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "shutil.rmtree": 1,
    "shutil.move": 2,
    "shutil.copyfile": 2,
    "tempfile.mkstemp": 1,
    "tempfile.mkdtemp": 1,
}
_LOOKS = ("os.listdir", "os.scandir", "glob.glob", "os.walk", "os.fwalk")
_BOOT = "/proc/sys/kernel/random/boot_id"  # a lock names the boot of its machine
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# These evaluate annotations of our own methods, and literals of numpy's headers as a tree that is never run.
_EVALUATORS = (typing.__file__, ast.__file__)


class Watch:
    """Notes of what happens while it is armed."""

    def __init__(self, root: Path, *, readable: tuple[str, ...] = (), importable: tuple[str, ...] = ()) -> None:
        self.root, self.events = str(root.resolve()), list[str]()
        self._readable, self._importable, self._armed = (self.root, _BOOT, *readable), importable, False
        sys.addaudithook(self._hear)

    @contextmanager
    def armed(self) -> Generator[list[str]]:
        """Note what happens in the block, and give the notes."""
        self.events = []
        self._armed = True
        try:
            yield self.events
        finally:
            self._armed = False

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._armed:
            return
        self._armed = False  # what the judging itself does is not of interest
        try:
            told = self._judge(event, arguments)
            if told:
                self.events.append(told)
        finally:
            self._armed = True

    def _judge(self, event: str, arguments: tuple[object, ...]) -> str | None:
        if event == "import":
            name = str(arguments[0])
            return None if name.startswith(self._importable) else f"import {name}"
        if event in ("compile", "exec"):
            return None if self._is_known_evaluator() else f"{event} {str(arguments)[:100]}"
        if event in _NEVER or event.startswith(_NEVER_FROM):
            return f"{event} {str(arguments)[:100]}"
        if event == "open":
            path, _, flags = (*arguments, None, None)[:3]
            changes = isinstance(flags, int) and bool(flags & _WRITING)
            return self._place("write" if changes else "read", path, changes)
        if event in _CHANGES:
            places = [self._place(event, path, True) for path in arguments[: _CHANGES[event]]]
            return next((each for each in places if each), None)
        if event in _LOOKS:
            return self._place(event, arguments[0] if arguments else None, False)
        return None

    def _place(self, what: str, path: object, changes: bool) -> str | None:
        if isinstance(path, int) or path is None:
            return None
        where = os.path.realpath(os.fsdecode(path))
        allowed = (self.root,) if changes else self._readable
        inside = any(where == each or where.startswith(each.rstrip("/") + "/") for each in allowed)
        return None if inside else f"{what} {where}"

    @staticmethod
    def _is_known_evaluator() -> bool:
        frame = sys._getframe(4)
        return frame is not None and frame.f_code.co_filename in _EVALUATORS
