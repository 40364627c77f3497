"""The adapter file on disk: written whole or not at all, and checked against its own description when read."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convpeft.errors import AdapterFileError, one_line
from convpeft.fingerprints import tensor_digest
from convpeft.hub_address import HubAddress, fetch_files, is_hub_address, read_address
from convpeft.writing import standing, whole_directory

FORMAT = "convpeft-adapter"
FORMAT_VERSION = 1
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
_LARGEST_CONFIG = 64 * 2**20  # bytes; a thousand times what the largest network needs


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds, read and checked on its own, without a model."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter file and check it against its own description, without a model.

    Raises:
        AdapterFileError: If anything is missing, extra, mis-shaped or altered.
    """
    directory = find_adapter(path)
    config = _read_config(directory / CONFIG)
    try:
        if not (directory / WEIGHTS).is_file():  # a named pipe would be waited for
            raise ValueError("there is no such file")
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise AdapterFileError(
            f"{directory / WEIGHTS}: cannot be read ({one_line(error)}). Get the file again."
        ) from None
    digests = cast(dict[str, str], config["tensors"])
    for problem, keys in (
        ("lacks", digests.keys() - tensors.keys()),
        ("has an extra", tensors.keys() - digests.keys()),
    ):
        if keys:
            raise AdapterFileError(f"{directory / WEIGHTS} {problem} tensor {min(keys)!r}. Get the file again.")
    for key, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise AdapterFileError(
                f"{directory / WEIGHTS}: tensor {key!r} holds {tensor.dtype}, as no adapter does. Get the file again."
            )
        if tensor_digest(tensor) != digests[key]:
            raise AdapterFileError(
                f"{directory / WEIGHTS}: tensor {key!r} is not the one that was saved. Get the file again."
            )
        if not torch.isfinite(tensor).all():
            raise AdapterFileError(
                f"{directory / WEIGHTS}: tensor {key!r} holds NaN or infinity. Train the adapter again."
            )
    for part in config["parts"]:  # else a false number of classes would be made room for
        key = f"{part['path']}:{part['part']}.weight"
        head = tensors.get(key)
        if part["part"] == "head" and (head is None or head.shape[:1] != (config["num_classes"],)):
            raise AdapterFileError(
                f"{directory}: tells of {config['num_classes']} classes, but {key!r} is no head of as many. "
                "Get the file again."
            )
    return AdapterFile(directory, config, tensors)


def find_adapter(path: str | Path) -> Path:
    """The adapter's directory, given itself, a run's directory or an address of the hub.

    Raises:
        AdapterFileError: If there is none.
    """
    if is_hub_address(path):
        return fetch_adapter(path)[0]
    given = Path(path)
    with suppress(OSError, ValueError):  # a name that the system cannot have
        for directory in (given, given / "adapter"):
            found = standing(directory)
            if (found / CONFIG).is_file():
                return found
    raise AdapterFileError(
        f"{one_line(given)}: holds no adapter, expected a directory with {CONFIG} and {WEIGHTS}, or a run with one."
    )


def fetch_adapter(address: str | Path) -> tuple[Path, HubAddress]:
    """The local folder of an adapter on the hub, and its address with the commit; says so where none was given.

    Raises:
        AdapterFileError: If the address is none, or the files cannot be fetched.
    """
    asked = read_address(address)
    folder, pinned = fetch_files(asked, (CONFIG, WEIGHTS))
    if pinned != asked:
        warnings.warn(f"{asked} is now {pinned}. Give that address to get the same adapter again.", stacklevel=3)
    return folder, pinned


def write_adapter(target: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write description and tensors into a directory that appears whole or not at all.

    Raises:
        AdapterFileError: If the directory holds something else or cannot be written.
    """
    try:
        if target.exists() and (not target.is_dir() or any(f.name not in (CONFIG, WEIGHTS) for f in target.iterdir())):
            raise AdapterFileError(
                f"{target}: exists and is not an adapter, so it is not replaced. Choose another path."
            )
        with whole_directory(target) as work:
            save_file(dict(tensors), work / WEIGHTS, metadata={"format": "pt"})
            whole = dict(config) | {"digest": description_digest(config)}
            (work / CONFIG).write_text(json.dumps(whole, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:  # ValueError for a name with a zero byte
        raise AdapterFileError(
            f"{one_line(target)}: cannot be written ({one_line(error)}). Free space or choose another path."
        ) from None
    return target


def _read_config(path: Path) -> dict[str, Any]:
    """Read the description and check the type of everything that is used."""
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"no {FORMAT} file")
        if config.get("format_version") != FORMAT_VERSION:
            found = config.get("format_version")
            raise ValueError(f"format version {found!r}, this convpeft reads {FORMAT_VERSION}; upgrade convpeft")
        _check_types(cast(dict[str, Any], config))
        if config["digest"] != description_digest(cast(dict[str, Any], config)):
            raise ValueError("it is not the one that was saved")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{path}: is not a readable description ({one_line(error)}). Get the file again."
        ) from None
    return cast(dict[str, Any], config)


def _check_types(config: dict[str, Any]) -> None:
    expected: dict[str, type | tuple[type, ...]] = {
        "method": str,
        "options": dict,
        "norm": str,
        "num_classes": (int, type(None)),
        "classes": (list, type(None)),
        "preprocessing": (dict, type(None)),
        "model": (dict, type(None)),
        "parts": list,
        "base": dict,
        "below": list,
        "tensors": dict,
        "versions": dict,
        "digest": str,
    }
    for key, kind in expected.items():
        if not isinstance(config.get(key, ...), kind):
            raise ValueError(f"field {key!r} is missing or of the wrong type")
    strings: list[Any] = [
        *(config["classes"] or []),
        config["base"].get("fingerprint"),
        *config["tensors"].values(),
    ]
    if not all(isinstance(each, str) for each in strings) or not isinstance(config["base"].get("tensors"), dict):
        raise ValueError("field 'classes', 'base' or 'tensors' holds a value of the wrong type")
    for name in config["classes"] or []:
        if not name.isprintable():
            raise ValueError(f"class {name!r} is not printable text")
    if config["norm"] not in ("frozen", "adapt", "train"):
        raise ValueError(f"field 'norm' holds {config['norm']!r}, expected frozen, adapt or train")
    if None not in (config["classes"], config["num_classes"]) and len(config["classes"]) != config["num_classes"]:
        raise ValueError(f"{len(config['classes'])} class names for {config['num_classes']} classes")
    for part in config["parts"]:
        if not isinstance(part, dict) or not isinstance(part.get("path"), str) or not isinstance(part.get("part"), str):
            raise ValueError("field 'parts' holds an entry without path or part")
        if part["part"].startswith("head@"):
            raise ValueError(f"field 'parts' holds a part {part['part']!r}")


def description_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 over everything in the description but the digest itself."""
    rest = {key: value for key, value in config.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
