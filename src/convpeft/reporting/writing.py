"""Write a file of a report whole or not at all, and say in one line why not."""

from __future__ import annotations

from pathlib import Path

from convpeft.errors import RunError
from convpeft.writing import write_file


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then move it into place; folders are made as needed.

    A reader sees the old content or the new, never a part, and a failure leaves the old file as it was.

    Raises:
        RunError: If the file cannot be written.
    """
    try:
        write_file(path, content)
    except OSError as error:
        raise RunError(
            f"Cannot write {path}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has space left."
        ) from error
