"""Write a file or a directory whole or not at all: a reader sees the old one or the new one, never a part.

What is written goes under a temporary name beside the target, to the disk, and then into place. A failure leaves the
target as it was; a kill leaves it so too, with a temporary name beside it that `remove_leftovers` knows.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NEW = ".convpeft-new"  # ends the name of what is being written
_OLD = ".convpeft-old"  # ends the name of a directory that is being replaced
_BLOCK = 4096  # bytes


def write_file(path: str | Path, content: bytes) -> None:
    """Write a file; folders are made as needed.

    Raises:
        OSError: If it cannot be written; the old one is as it was.
    """
    with whole_file(Path(path)) as work, work.open("wb") as stream:
        stream.write(content)


@contextmanager
def whole_file(target: Path) -> Generator[Path]:
    """Give a name to write a file under, and move it into place at the end; folders are made as needed.

    Raises:
        OSError: If it cannot be put into place; the old one is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _beside(target)
    try:
        work.touch(exist_ok=False)
        mode = work.stat().st_mode
        yield work
        work.chmod(mode)  # safetensors makes files that only their owner reads
        _flush(work)
        work.replace(target)
        _flush_names(target.parent)
    finally:
        with suppress(OSError):  # it is gone after a success; after a failure, that failure is the one to report
            work.unlink()


@contextmanager
def whole_directory(target: Path, *, keep_as: Path | None = None) -> Generator[Path]:
    """Give an empty directory to fill, and move it into place at the end; folders are made as needed.

    Two renames replace a directory. A kill between them leaves no target: then the old one has the name `keep_as`, or
    by default the one that `standing` finds.

    Args:
        target: The directory; one that is there is replaced.
        keep_as: Where the one before stays, a sibling; one that is there is removed. Default: it is removed.

    Raises:
        OSError: If it cannot be put into place; the old one is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work, retired = _beside(target), _retired(target) if keep_as is None else keep_as
    work.mkdir()
    try:
        yield work
        for file in work.iterdir():
            file.chmod(work.stat().st_mode & 0o666)  # safetensors makes files that only their owner reads
            _flush(file)
        _flush_names(work)
        if target.exists():
            _remove(retired)
            target.rename(retired)
            try:
                work.rename(target)
            except OSError:
                retired.rename(target)
                raise
        else:
            work.rename(target)
        _flush_names(target.parent)
        if keep_as is None:
            shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def standing(target: Path) -> Path:
    """Where a directory is: under its name, or where a writer that was killed between two renames has put it."""
    if not target.name or target.exists():
        return target
    retired = _retired(target)
    return retired if retired.is_dir() else target


def try_room(folder: Path, sizes: Sequence[int]) -> None:
    """Take the room of files of these sizes, in bytes, and give it back.

    This meets what the free space does not tell: a quota, a limit on a file's size, a folder that is read-only. Where
    the system cannot set room aside, one block is written instead.

    Raises:
        OSError: If there is no such room, or the folder cannot be written.
    """
    taken: list[Path] = []
    try:
        for size in sizes:
            taken.append(_beside(folder / "room"))
            with taken[-1].open("xb") as stream:
                _take_room(stream, size)
    finally:
        for each in taken:
            each.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left anywhere below a folder that nobody is writing into."""
    for each in list(folder.rglob(f".*{_NEW}")):
        _remove(each)
    for retired in list(folder.rglob(f".*{_OLD}")):
        target = retired.with_name(retired.name.removeprefix(".").removesuffix(_OLD))
        if target.exists():
            _remove(retired)
        else:
            retired.rename(target)


def _take_room(stream: BinaryIO, size: int) -> None:
    reserve = getattr(os, "posix_fallocate", None)  # macOS has none
    try:
        if reserve is not None and size > 0:
            reserve(stream.fileno(), 0, size)
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    stream.write(bytes(min(size, _BLOCK)))
    stream.flush()
    os.fsync(stream.fileno())


def _beside(target: Path) -> Path:
    return target.with_name(f".{secrets.token_hex(8)}{_NEW}")


def _retired(target: Path) -> Path:
    return target.with_name(f".{target.name}{_OLD}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_names(folder: Path) -> None:
    """Bring a directory's names to the disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
