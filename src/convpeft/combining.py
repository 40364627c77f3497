"""A weighted sum of adapters of one base, as one adapter file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convpeft._version import __version__
from convpeft.adapter_file import AdapterFile, read_adapter, write_adapter
from convpeft.adapters import complete_options, method_class
from convpeft.errors import AdapterFileError, ModelError, OptionError
from convpeft.fingerprints import fingerprint, tensor_digest
from convpeft.models.loading import rebuild
from convpeft.models.source import ModelSource
from convpeft.storage import check_base, describe_part, rebuild_parts
from convpeft.summing import Loaded, needs_base, parts_alone, sum_parts

_ONE = 1e-6  # how far from one coefficients may be that were meant to add up to it
_ORDER = ("probe", "full", "lora", "bitfit")  # of the methods in the name of a mix


def combine(
    paths: Sequence[str | Path],
    *,
    out: str | Path,
    coefficients: Sequence[float] | None = None,
    model: nn.Module | None = None,
    weights: str | Path | None = None,
) -> Path:
    """Write the weighted sum of adapters of one base as an adapter of that base.

    Each layer's weight becomes W + sum of coefficient * (what the adapter makes of W, minus W), and its bias likewise.
    Sums of low-rank updates are kept as factors, as method `lora` with the ranks added up; where that would be larger
    than the layer, and for every other map, the whole weight is written, as method `full` does, which needs the base.

    Args:
        paths: Adapters or runs, one or more.
        out: Directory to write; an adapter that is there is replaced, anything else is not touched.
        coefficients: One finite number for each. Default: equal ones that add up to one.
        model: The base, where it is needed. Default: the one that the first file records is built.
        weights: The base's weights file, where it is not at the recorded place.

    Returns:
        The directory.

    Raises:
        OptionError: If the coefficients do not fit, or do not add up to one where heads are averaged.
        AdapterFileError: If a file is missing or damaged, or the adapters do not go together.
        ModelError: If an adapter is no map of weights, or the base is needed and cannot be built.
    """
    files = [read_adapter(path) for path in paths]
    shares = _read_coefficients(coefficients, len(files))
    _check_alike(files)
    _check_heads(files, shares)
    norms = _common_statistics(files)
    alone = [parts_alone(file) for file in files]
    loaded = [each for each in alone if each is not None]
    base: nn.Module | None = None
    if len(loaded) < len(files) or needs_base(loaded):
        base = _base_of(files[0], model, weights)
        found = fingerprint(base)
        for file in files:
            check_base(found, file)
        loaded = [Loaded(file, [part for part in rebuild_parts(base, file)[1] if part[1] != "norm"]) for file in files]
    parts = sum_parts(loaded, shares, base)
    tensors = {f"{path}:{label}.{key}": t for path, label, part in parts for key, t in part.state_dict().items()}
    wide = any(tensor.dtype == torch.float64 for file in files for tensor in file.tensors.values())
    dtype = torch.float64 if wide else torch.float32  # as the adapters that are summed are stored
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()} | norms[1]
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise OptionError(f"coefficients: the sum at {key!r} is not finite. Give smaller ones.")
    method, options = _method_of(parts)
    config = files[0].config | {
        "method": method,
        "options": options,
        "parts": [_described(path, label, part, options) for path, label, part in parts] + norms[0],
        "below": [],
        "tensors": {key: tensor_digest(tensor) for key, tensor in sorted(tensors.items())},
        "versions": {"convpeft": __version__, "torch": torch.__version__},
    }
    return write_adapter(Path(out), {key: value for key, value in config.items() if key != "digest"}, tensors)


def _read_coefficients(given: Sequence[float] | None, count: int) -> list[float]:
    if not count:
        raise OptionError("paths: expected at least one adapter to combine, got none.")
    if given is None:
        return [1 / count] * count
    if len(given) != count:
        raise OptionError(f"coefficients: expected one for each of {count} adapters, got {len(given)}.")
    for number in given:
        if isinstance(number, bool) or not math.isfinite(number):
            raise OptionError(f"coefficients: {number!r} is no finite number.")
    return [float(number) for number in given]


def _check_alike(files: Sequence[AdapterFile]) -> None:
    first = files[0]
    for file in files:
        if file.config["below"]:
            raise AdapterFileError(
                f"{file.path}: was trained on top of {len(file.config['below'])} other adapters, so it is no change of "
                "the base alone and has no place in a sum. Merge the others into the base first."
            )
        ours, theirs = first.config["base"]["fingerprint"], file.config["base"]["fingerprint"]
        if ours != theirs:
            raise AdapterFileError(
                f"{file.path}: made for the base {theirs[:16]}, but {first.path} for {ours[:16]}. "
                "Combine adapters of one base."
            )
        if file.config["preprocessing"] != first.config["preprocessing"]:
            raise AdapterFileError(
                f"{file.path}: prepares images in another way than {first.path}. Combine adapters with equal "
                "preprocessing."
            )


def _check_heads(files: Sequence[AdapterFile], shares: Sequence[float]) -> None:
    first = files[0]
    names = first.config["classes"]
    paths = [[part["path"] for part in file.config["parts"] if part["part"] == "head"] for file in files]
    for file, heads in zip(files[1:], paths[1:], strict=True):
        theirs = file.config["classes"]
        if theirs != names or file.config["num_classes"] != first.config["num_classes"] or heads != paths[0]:
            raise AdapterFileError(
                f"{file.path}: has the classes {_shown(file)}, but {first.path} has {_shown(first)}. "
                "Heads add up only for the same classes in the same order."
            )
        if heads and names is None:
            raise AdapterFileError(
                f"{file.path}: tells no class names, so nobody knows whether its head means the same classes. "
                "Save both with convpeft.save(..., classes=[...])."
            )
    if paths[0] and abs(sum(shares) - 1) > _ONE:
        raise OptionError(
            f"coefficients: add up to {sum(shares):g}, but heads of their own can only be averaged, which takes 1. "
            "Choose others, or combine adapters that keep the base's head."
        )


def _shown(file: AdapterFile) -> str:
    names = file.config["classes"]
    if names is None:
        return f"{file.config['num_classes'] or 'of the base'}"
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''} ({len(names)})"


def _common_statistics(files: Sequence[AdapterFile]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Norm statistics that all files have alike, described and as tensors.

    Raises:
        AdapterFileError: If they differ.
    """
    found: list[tuple[list[dict[str, Any]], dict[str, Tensor]]] = []
    for file in files:
        described = [part for part in file.config["parts"] if part["part"] == "norm"]
        prefixes = tuple(f"{part['path']}:norm." for part in described)
        found.append((described, {k: t for k, t in file.tensors.items() if prefixes and k.startswith(prefixes)}))
    first, counters = found[0], ".num_batches_tracked"
    for file, other in zip(files, found, strict=True):
        same = first[1].keys() == other[1].keys() and all(
            torch.equal(tensor, first[1][key]) for key, tensor in other[1].items() if not key.endswith(counters)
        )
        if not same:
            raise AdapterFileError(
                f"{file.path}: has other norm statistics than {files[0].path}, and a sum of statistics is the "
                "statistics of nothing. Train with the norm policy frozen to combine."
            )
    return first


def _base_of(file: AdapterFile, model: nn.Module | None, weights: str | Path | None) -> nn.Module:
    if model is not None:
        return model
    record = file.config["model"]
    source = None if record is None else ModelSource.from_dict(record, where=f"{file.path}: model")
    if source is None or source.imports_code:
        raise ModelError(
            f"{file.path}: this sum is written as whole weights, for which the base is needed, and the file names "
            "none that can be built. Build it yourself and call convpeft.combine(..., model=base)."
        )
    return rebuild(source, weights=weights)


def _method_of(parts: Sequence[tuple[str, str, nn.Module]]) -> tuple[str, dict[str, Any]]:
    """The name of the methods that a sum came to, and their options."""
    used = {label.partition("@")[0] for _, label, _ in parts} - {"head"} or {"probe"}
    names = sorted(used, key=_ORDER.index)
    ranks = [part.up.shape[1] for _, label, part in parts if label == "lora" and isinstance(part.up, Tensor)]
    own: dict[str, dict[str, Any]] = {"lora": {"rank": max(ranks, default=1)}, "bitfit": {"create": True}}
    options = {name: complete_options(method_class(name), own.get(name, {})) for name in names}
    return "+".join(names), (options if len(names) > 1 else options[names[0]]) | {"rank_policy": "clamp"}


def _described(path: str, label: str, part: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    described = describe_part(path, label, part)
    common = options.get("lora", options)
    if described.get("options", {}).get("rank") == common.get("rank"):
        described.pop("options", None)
    return described
