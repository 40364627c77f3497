"""Write a whole file or nothing."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from convpeft.errors import RunError


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then move it into place; folders are made as needed.

    A reader sees the old content or the new, never a part, and a failure leaves the old file as it was.

    Raises:
        RunError: If the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        raise RunError(
            f"Cannot write {target}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has space left."
        ) from error
    finally:
        # It is gone after a success; after a failure, that failure is the one to report.
        with suppress(OSError):
            temporary.unlink()
