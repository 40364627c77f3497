"""The adapter file on disk: written whole or not at all, and checked against its own description when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convpeft.adapter_description import CONFIG, MAP, WEIGHTS, description_digest, find_adapter, read_description
from convpeft.errors import AdapterFileError, one_line
from convpeft.fingerprints import tensor_digest
from convpeft.writing import whole_directory

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
_FILES = (CONFIG, WEIGHTS, MAP)  # all that an adapter's directory may hold


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
    config = read_description(directory / CONFIG)
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


def write_adapter(target: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write description and tensors into a directory that appears whole or not at all.

    Raises:
        AdapterFileError: If the directory holds something else or cannot be written.
    """
    try:
        if target.exists() and (not target.is_dir() or any(f.name not in _FILES for f in target.iterdir())):
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
