"""The results of a comparison: one line of JSON a run or trial, appended whole, read whatever a kill has left."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, cast

from convpeft.errors import RunError

RESULTS = "results.jsonl"


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each key; a line that was cut off is none.

    Raises:
        RunError: If the file cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}). Give another --out.") from None
    for line in content.split(b"\n"):
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and isinstance(cast(dict[str, Any], told).get("key"), str):
            row = cast(dict[str, Any], told)
            found[row["key"]] = row
    return found


def append_result(path: Path, row: dict[str, Any]) -> None:
    """Append a line and bring it to the disk; what a kill has left of a line before is cut off.

    Raises:
        RunError: If it cannot be written.
    """
    line = json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _cut_torn(descriptor)
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"{path}: cannot be appended to ({error.strerror}). Free space and run it again.") from None


def _cut_torn(descriptor: int) -> None:
    """Cut off what follows the last end of a line."""
    size = end = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)
