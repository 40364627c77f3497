"""What an adapter says of itself: its files' names and its description, read and checked without torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from convpeft.errors import AdapterFileError, one_line
from convpeft.hub_address import HubAddress, fetch_files, is_hub_address, read_address
from convpeft.writing import standing

FORMAT = "convpeft-adapter"
FORMAT_VERSION = 1
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MAP = "adapter_map.onnx.gz"  # only where the adapter is to travel to machines without torch
_LARGEST_CONFIG = 64 * 2**20  # bytes; a thousand times what the largest network needs


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


def read_description(path: Path) -> dict[str, Any]:
    """Read the description and check the type of everything that is used.

    Raises:
        AdapterFileError: If it cannot be read or is not as it was saved.
    """
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
