"""Fetch a public file once, check its digest, and say what to provide when there is no network."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from convpeft.errors import DataError

_TIMEOUT_SECONDS = 10.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublicFile:
    """A file at a public address, with its published MD5 and its size in bytes at most."""

    url: str
    md5: str
    max_bytes: int

    @property
    def name(self) -> str:
        """The file name at the end of the address."""
        return self.url.rsplit("/", 1)[1]


def cache_directory() -> Path:
    """Return where downloaded data lives: $CONVPEFT_CACHE/data, or ~/.cache/convpeft/data."""
    base = os.environ.get("CONVPEFT_CACHE")
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "convpeft") / "data"


def fetch(file: PublicFile, folder: Path, *, timeout: float = _TIMEOUT_SECONDS) -> Path:
    """Return FOLDER/NAME, downloading it with a progress bar when it is not there.

    The file appears under its name only when it is whole and its digest is right.

    Raises:
        DataError: If the address cannot be reached in `timeout` seconds, the digest is wrong, or the folder
            cannot be written. The message names the address and where to put the file by hand.
    """
    target = folder / file.name
    if target.is_file():
        return target
    where = f"download {file.url}"
    remedy = f"Get {file.name} (md5 {file.md5}) elsewhere and put it at '{target}'."
    # Looking up a name can hang without a limit; this asks in a thread of its own.
    from convpeft.models.downloads import reachable

    if not reachable(file.url):
        raise DataError(f"{where}: the server does not answer, is there a network? {remedy}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=folder)
    except OSError as error:
        raise DataError(f"{where}: cannot write to '{folder}' ({error.strerror}). {remedy}") from error
    try:
        with os.fdopen(descriptor, "wb") as handle:
            digest = _receive(file, handle, timeout)
        if digest != file.md5:
            raise DataError(f"{where}: has md5 {digest}, expected {file.md5}; it was thrown away. {remedy}")
        Path(partial).replace(target)
    # http.client has errors of its own beside OSError (URLError, timeout).
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{where}: failed ({reason}). {remedy}") from error
    finally:
        with suppress(FileNotFoundError):
            Path(partial).unlink()
    return target


def _receive(file: PublicFile, target: BinaryIO, timeout: float) -> str:
    """Stream the address into an open file and return the MD5 of what came."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    digest = hashlib.md5(usedforsecurity=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        urllib.request.urlopen(file.url, timeout=timeout) as response,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        length = response.headers.get("Content-Length")
        task = progress.add_task(f"downloading {file.name}", total=int(length) if length else None)
        received = 0
        while chunk := response.read(_CHUNK_BYTES):
            received += len(chunk)
            if received > file.max_bytes:
                raise OSError(f"sent more than the {file.max_bytes:,} bytes expected")
            digest.update(chunk)
            target.write(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()
