"""Read the files of other packages as tables of finite tensors and plain options, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from convpeft.errors import AdapterFileError, one_line

_LARGEST_CONFIG = 2**20  # bytes
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, in float32 or wider.

    Raises:
        AdapterFileError: If it cannot be read, or a tensor is no float or not finite.
    """
    try:
        if not path.is_file():  # a named pipe would be waited for
            raise ValueError("there is no such file")
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise AdapterFileError(f"{one_line(path)}: cannot be read ({one_line(error)}). Get the file again.") from None
    return {key: checked_tensor(value, key, path) for key, value in tensors.items()}


def checked_tensor(value: Tensor, key: str, path: Path) -> Tensor:
    """A tensor in float32 or wider.

    Raises:
        AdapterFileError: If it is no float or not finite.
    """
    if value.dtype not in _FLOATS:
        raise AdapterFileError(
            f"{one_line(path)}: tensor {key!r} holds {value.dtype}, expected plain floats. Save it unquantised."
        )
    if not bool(torch.isfinite(value).all()):
        raise AdapterFileError(f"{one_line(path)}: tensor {key!r} holds NaN or infinity. Train the adapter again.")
    return value.to(torch.promote_types(value.dtype, torch.float32))


def read_options(path: Path) -> dict[str, Any]:
    """The table in a .json file.

    Raises:
        AdapterFileError: If it cannot be read or holds something else.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        options = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError("no table of options")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{one_line(path)}: is not a readable description ({one_line(error)}). Get the file again."
        ) from None
    return cast(dict[str, Any], options)
