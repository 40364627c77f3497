"""An adapter's files read with numpy alone, checked as `read_adapter` checks them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from convpeft.adapter_description import CONFIG, WEIGHTS, find_adapter, read_description
from convpeft.errors import AdapterFileError, one_line

_TYPES = {
    "F32": "float32",
    "F64": "float64",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
_LARGEST_HEADER = 64 * 2**20  # bytes; a thousand times what the largest network needs


@dataclass(frozen=True)
class PlainAdapter:
    """What an adapter file holds, without torch."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, NDArray[Any]]


def read_plain_adapter(path: str | Path) -> PlainAdapter:
    """Read an adapter file and check it against its own description, with numpy alone.

    Raises:
        AdapterFileError: If anything is missing, extra, mis-shaped or altered.
    """
    directory = find_adapter(path)
    config = read_description(directory / CONFIG)
    file = directory / WEIGHTS
    try:
        if not file.is_file():  # a named pipe would be waited for
            raise ValueError("there is no such file")
        tensors = parse_tensors(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{file}: cannot be read ({one_line(error)}). Get the file again.") from None
    digests = cast(dict[str, str], config["tensors"])
    different = sorted(digests.keys() ^ tensors.keys())
    if different:
        raise AdapterFileError(
            f"{file}: tensor {different[0]!r} is in the file or in its description alone. Get the file again."
        )
    for key, value in tensors.items():
        if array_digest(value) != digests[key]:
            raise AdapterFileError(f"{file}: tensor {key!r} is not the one that was saved. Get the file again.")
        if not np.isfinite(value).all():
            raise AdapterFileError(f"{file}: tensor {key!r} holds NaN or infinity. Train the adapter again.")
    return PlainAdapter(directory, config, tensors)


def array_digest(array: NDArray[Any]) -> str:
    """What `tensor_digest` gives for the same tensor: SHA-256 over dtype as torch calls it, shape and values.

    >>> array_digest(np.zeros(2, np.float32))[:16]
    '21ff1b764ef3e705'
    """
    header = f"torch.{array.dtype.name}{tuple(array.shape)}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def parse_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file: a length, a header in JSON, and the numbers without gap or overlap.

    Raises:
        ValueError: If the file is anything else, or holds numbers of a type that no adapter does.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_LARGEST_HEADER, len(content) - 8):
        raise ValueError(f"its header would be {size} bytes long")
    header = json.loads(content[8 : 8 + size].decode("utf-8"), object_pairs_hook=_without_doubles)
    if not isinstance(header, dict):
        raise ValueError("its header is no list of tensors")
    body, found, places = memoryview(content)[8 + size :], dict[str, NDArray[Any]](), list[tuple[int, int]]()
    for key, entry in cast(dict[str, Any], header).items():
        if key == "__metadata__":
            continue
        name, shape, start, end = _entry(key, entry)
        dtype = np.dtype(_TYPES[name])
        if not start <= end <= len(body) or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {key!r} does not lie inside the file")
        if name == "BOOL" and not set(body[start:end]) <= {0, 1}:
            raise ValueError(f"tensor {key!r} holds a bool that is neither true nor false")
        places.append((start, end))
        found[key] = np.frombuffer(body[start:end], dtype=dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    position = 0
    for start, end in sorted(places):
        if start != position:
            raise ValueError("its tensors overlap, or leave a gap")
        position = end
    if position != len(body):
        raise ValueError("something follows its last tensor")
    return found


def _entry(key: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of one tensor in the header."""
    fields = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
    name, shape, place = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(name, str) or name not in _TYPES:
        raise ValueError(f"tensor {key!r} holds {name!r}, which patching does not read")
    if not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2 or len(shape) > 16:
        raise ValueError(f"tensor {key!r} has no shape or no place")
    return name, tuple(shape), place[0], place[1]


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**48 for each in cast(list[Any], value))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return dict(pairs)
