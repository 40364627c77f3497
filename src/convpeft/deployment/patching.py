"""Patch a network on a device: base and adapter in, adapted network out, with numpy and onnx alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from convpeft._version import __version__
from convpeft.adapter_description import MAP
from convpeft.deployment.base_graph import Array, base_arrays, put_tensors, read_base, settle_classes
from convpeft.deployment.map_file import LARGEST_FILE, NEW, read_map, run_map
from convpeft.deployment.plain_adapter import PlainAdapter, read_plain_adapter
from convpeft.errors import AdapterFileError, OptionError, RunError, one_line
from convpeft.writing import whole_file


@dataclass(frozen=True)
class Patched:
    """What a patch has changed.

    Attributes:
        out: The file that was written.
        tensors: How many tensors are new.
        size: Bytes of the file.
        sent: Bytes of the adapter and its map: all that had to travel.
    """

    out: Path
    tensors: int
    size: int
    sent: int

    def __str__(self) -> str:
        """One line for the terminal."""
        return f"{self.out}: {self.tensors} new tensors, {self.size:,} bytes from a patch of {self.sent:,}"


def patch_network(base: str | Path, adapter: str | Path, out: str | Path) -> Patched:
    """Write the network that an adapter makes of its base; both ONNX files, without torch.

    Args:
        base: The base, as `convpeft export RUN --base --to onnx` writes it.
        adapter: An adapter or a run, with the map that `convpeft export RUN --to patch` puts beside it. Where torch is
            installed, a map that is missing is made on the fly.
        out: The file to write, .onnx.

    Raises:
        OptionError: If `out` exists or has another ending.
        AdapterFileError: If adapter or map is damaged, or was made for another base. Nothing is written then.
        RunError: If the base cannot be read or the file cannot be written.
    """
    target = Path(out)
    if target.suffix != ".onnx":
        raise OptionError(f"--out {one_line(target)}: expected a name that ends in .onnx.")
    if target.exists():
        raise OptionError(f"--out {target}: exists already, so it is not patched over. Give another name.")
    file = read_plain_adapter(adapter)
    if file.config["below"]:
        raise AdapterFileError(
            f"{file.path}: was trained on top of other adapters, so it patches no base. Merge them and train on that."
        )
    content, where = _map_of(file), str(file.path / MAP)
    instructions = read_map(content, where, adapter=file.config["digest"])
    model = read_base(Path(base))
    arrays = base_arrays(model, Path(base), file.config["base"])
    _check_outputs(instructions, file, arrays, where)
    made = run_map(instructions, arrays | file.tensors, where)
    _check_made(made, file, arrays, where)
    put_tensors(model, made)
    for name in (each for each in _heads(file) if each in made):
        settle_classes(model, name, old=arrays[name].shape[0], new=made[name].shape[0])
    _describe(model, file)
    return _write(model, target, len(made), _sent(file, content))


def _map_of(file: PlainAdapter) -> bytes:
    """The map beside the adapter, or one made now where torch is."""
    path = file.path / MAP
    try:
        if path.is_file():
            if path.stat().st_size > LARGEST_FILE:
                raise OSError(f"{path.stat().st_size} bytes are too many")
            return path.read_bytes()
    except OSError as error:
        raise AdapterFileError(f"{path}: the map cannot be read ({one_line(error)}). Get the file again.") from None
    try:
        from convpeft.deployment.patch_map import make_patch_map
    except ModuleNotFoundError as error:
        raise AdapterFileError(
            f"{path}: there is no map, and no {error.name} to make it. Run convpeft export RUN --to patch where torch "
            "is, and send the adapter again."
        ) from None
    return make_patch_map(file.path)


def _check_outputs(model: ModelProto, file: PlainAdapter, base: Mapping[str, Array], where: str) -> None:
    """Every part of the adapter is put to use, and nothing else than its layers' tensors is changed."""
    paths = {part["path"] for part in file.config["parts"]}
    changed: set[str] = set()
    for name in (each.removeprefix(NEW) for node in model.graph.node for each in node.output):
        owner = name.rpartition(".")[0]
        known = name in base or (name.endswith("bias") and name.removesuffix("bias") + "weight" in base)
        if owner not in paths or not known:
            raise AdapterFileError(f"{where}: changes {name!r}, which no part of the adapter acts on. Get it again.")
        changed.add(owner)
    if paths - changed:
        raise AdapterFileError(f"{where}: leaves out layer {min(paths - changed)!r} of the adapter. Get it again.")


def _check_made(made: Mapping[str, Array], file: PlainAdapter, base: Mapping[str, Array], where: str) -> None:
    """New tensors are finite and as large as the old; only a fresh head has rows of its own."""
    heads = {name.rpartition(".")[0] for name in _heads(file)}
    for name, array in made.items():
        old = base.get(name)
        rows = file.config["num_classes"] if name.rpartition(".")[0] in heads else None
        if old is None:
            weight = base[name.removesuffix("bias") + "weight"]
            fits = array.ndim == 1 and array.dtype == weight.dtype
            expected = f"one number a channel, {weight.dtype}"
        else:
            shape = old.shape if rows is None else (rows, *old.shape[1:])
            fits = array.shape == shape and array.dtype == old.dtype
            expected = f"{shape}, {old.dtype}"
        if not fits or (rows is not None and array.shape[:1] != (rows,)):
            raise AdapterFileError(f"{where}: makes {name!r} as {array.shape}, {array.dtype}, expected {expected}.")
        if not np.isfinite(array).all():
            raise AdapterFileError(f"{where}: the new {name!r} is not finite. The adapter was trained to overflow.")


def _heads(file: PlainAdapter) -> list[str]:
    """Names of the weights of fresh heads."""
    return [f"{part['path']}.weight".lstrip(".") for part in file.config["parts"] if part["part"] == "head"]


def _describe(model: ModelProto, file: PlainAdapter) -> None:
    """Say in the file what it is now: classes, preprocessing, base and adapter."""
    told: dict[str, Any] = {
        "convpeft.version": __version__,
        "convpeft.kind": "patched",
        "convpeft.fingerprint": file.config["base"]["fingerprint"],
        "convpeft.adapter": file.config["digest"],
        "convpeft.classes": file.config["classes"],
        "convpeft.preprocessing": file.config["preprocessing"],
    }
    kept = [each for each in model.metadata_props if each.key not in told]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in told.items():
        if value is not None:
            entry = model.metadata_props.add()
            entry.key = key
            entry.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write(model: ModelProto, target: Path, tensors: int, sent: int) -> Patched:
    try:
        content = model.SerializeToString()
        with whole_file(target) as work:
            work.write_bytes(content)
    except (OSError, ValueError) as error:
        raise RunError(
            f"--out {one_line(target)}: the network cannot be written ({one_line(error)}). Free space or give another "
            "name."
        ) from None
    return Patched(target, tensors, len(content), sent)


def _sent(file: PlainAdapter, content: bytes) -> int:
    return sum(each.stat().st_size for each in file.path.iterdir() if each.name != MAP) + len(content)
