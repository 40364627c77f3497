"""Read one idx file of unsigned bytes: plain, .gz, .xz, or inside a zip, with every size checked first."""

from __future__ import annotations

import gzip
import lzma
import math
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from convpeft.data.limits import check_expansion, check_packing
from convpeft.data.quoting import reason
from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNSIGNED_BYTE = 0x08
_CHUNK_BYTES = 1 << 24


def read_idx(path: Path, *, dimensions: int, member: str | None = None) -> NDArray[np.uint8]:
    """Read an idx file: 0 0 8 n, then n big-endian sizes, then the bytes.

    Args:
        path: The file; its suffix says how it is packed. With `member`, a zip that holds it.
        dimensions: How many axes to expect: 3 for images, 1 for labels.
        member: The name inside the zip (which may be a .gz in turn).

    Returns:
        uint8 with `dimensions` axes.

    Raises:
        DataError: If the file is missing, damaged, of another type or shape, or claims too much.
    """
    where = f"idx file '{path}'" + (f" member '{member}'" if member else "")
    try:
        if member is None:
            with path.open("rb") as stored:
                return _read(where, _unpacked(stored, path.name), path.stat().st_size, dimensions)
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(member)
            check_packing(where, [info])
            with archive.open(info) as stored:
                return _read(where, _unpacked(stored, member), info.compress_size, dimensions)
    except DataError:
        raise
    # gzip, lzma and zipfile raise errors of a dozen kinds for damaged files.
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({reason(error)}). Get the file again.") from error


def _unpacked(stored: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stored))
    if name.endswith(".xz"):
        return lzma.LZMAFile(stored)
    return stored


def _read(where: str, stream: IO[bytes], stored: int, dimensions: int) -> NDArray[np.uint8]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE or head[3] != dimensions:
        raise DataError(
            f"{where}: starts with {head.hex() or 'nothing'}, expected 000008{dimensions:02x} "
            f"(unsigned bytes, {dimensions} axes). Get the file again."
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{where}: ends inside its header. Get the file again.")
    shape = tuple(int(size) for size in np.frombuffer(sizes, dtype=">u4"))
    expected = math.prod(shape)
    check_expansion(where, expected, stored)
    content = bytearray()
    # Chunks, so that a false claim costs what is there and not what is claimed.
    while len(content) <= expected and (chunk := stream.read(min(_CHUNK_BYTES, expected + 1 - len(content)))):
        content += chunk
    if len(content) != expected:
        more = "more" if len(content) > expected else f"{len(content):,}"
        raise DataError(f"{where}: holds {more} bytes, its header says {expected:,} {shape}. Get the file again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
