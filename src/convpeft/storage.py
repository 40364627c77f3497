"""Save an adapter with all that it relies on, and load it on the base it was made for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from convpeft._version import __version__
from convpeft.adapter_description import FORMAT, FORMAT_VERSION
from convpeft.adapter_file import AdapterFile, read_adapter, write_adapter
from convpeft.adapters import Module, method_class
from convpeft.attachment import install, known_name, require_state
from convpeft.blocks import find_blocks
from convpeft.errors import AdapterFileError, ConvpeftError, OptionError, one_line
from convpeft.fingerprints import fingerprint, tensor_digest
from convpeft.heads import FreshHead
from convpeft.injection import adapted_layers, state_of
from convpeft.norms import norms_with_statistics, verify_norms
from convpeft.planning import Part, Request, options_of, read_requests
from convpeft.sites import Site, all_sites
from convpeft.slots import Attached, NormStatistics, State, slots_of

Model = TypeVar("Model", bound=nn.Module)


class Describes(Protocol):
    """What can be written into the description: model source and preprocessing."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        ...


def save(
    model: nn.Module,
    path: str | Path,
    *,
    name: str = "default",
    classes: Sequence[str] | None = None,
    preprocessing: Describes | None = None,
) -> Path:
    """Write one adapter as a directory; it appears whole or not at all. Equal adapters give equal bytes.

    Args:
        model: A model with adapters.
        path: Directory to write; an adapter that is there is replaced, anything else is not touched.
        name: Which adapter.
        classes: Class names in the order of the outputs. Default: what an earlier file or training told.
        preprocessing: How images become inputs. Default: what `load_model` knows.

    Returns:
        The directory.

    Raises:
        OptionError: If the name is not attached or the number of classes is not that of the head.
        ModelError: If nothing is attached, or a frozen norm was replaced by a live one.
        AdapterFileError: If a tensor is not finite, or the directory holds something else or cannot be written.
    """
    state = require_state(model)
    verify_norms(model)
    record = state.names[known_name(state, name)]
    names = record.classes if classes is None else tuple(str(each) for each in classes)
    if names is not None and record.num_classes is not None and len(names) != record.num_classes:
        raise OptionError(f"classes: expected {record.num_classes} names, one an output of the head, got {len(names)}.")
    for each in names or ():
        if not each.isprintable():
            raise OptionError(f"classes: {each!r} is not printable text. Rename the class.")
    record.classes = names
    parts = [
        describe_part(layer_path, label, part)
        for layer_path, layer in adapted_layers(model)
        for label, part in slots_of(layer).parts(name)
    ]
    tensors = _tensors_of(model, name)
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterFileError(f"tensor {key!r} holds NaN or infinity and is not saved. Lower the learning rate.")
    total, each = fingerprint(model)
    source = cast(Describes | None, model.__dict__.get("_convpeft_source"))
    described = preprocessing or cast(Describes | None, model.__dict__.get("_convpeft_preprocessing"))
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "method": record.method,
        "options": record.options,
        "norm": record.norm,
        "num_classes": record.num_classes,
        "classes": None if names is None else list(names),
        "preprocessing": None if described is None else described.to_dict(),
        "model": None if source is None else source.to_dict(),
        "parts": parts,
        "base": {"fingerprint": total, "tensors": each},
        "below": _digests(model, state.active[: state.active.index(name)] if name in state.active else ()),
        "tensors": {key: tensor_digest(value) for key, value in sorted(tensors.items())},
        "versions": {"convpeft": __version__, "torch": torch.__version__},
    }
    return write_adapter(Path(path), config, tensors)


def load(model: Model, path: str | Path, *, name: str | None = None, force: bool = False) -> Model:
    """Put a saved adapter on the base it was made for, in place.

    Args:
        model: The base.
        path: The adapter's directory, a run's directory that holds one, or `hf://user/name@revision` on the hub.
        name: What to call it. Default: `default`.
        force: Load onto a base with another fingerprint all the same, with a warning.

    Returns:
        The same model, the adapter active on it.

    Raises:
        AdapterFileError: If the file is missing, damaged or made for another base. The model is unchanged then.
        OptionError: If the name is in use.
    """
    file = read_adapter(path)
    state = state_of(model) or State()
    label = name if name is not None else "default"
    if label in state.names:
        raise OptionError(f"name={label!r} is in use on this model. Give another name=... to convpeft.load.")
    check_base(fingerprint(model), file, force=force)
    below = file.config["below"]
    if below and below != _digests(model, state.active) and not force:
        raise AdapterFileError(
            f"{file.path}: was trained on top of {len(below)} other adapters, and this model has "
            f"{len(state.active)} active ones or others. Load and activate the same ones first, or force=True."
        )
    record, parts = rebuild_parts(model, file)
    install(model, state, label, record, parts)
    return model


def _tensors_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Every tensor of one adapter, as it is stored."""
    return {
        f"{path}:{label}.{key}": value.detach().to("cpu").contiguous()
        for path, layer in adapted_layers(model)
        for label, part in slots_of(layer).parts(name)
        for key, value in part.state_dict().items()
    }


def _digests(model: nn.Module, names: Sequence[str]) -> list[str]:
    """What tells each of these adapters from any other."""
    found: list[str] = []
    for name in names:
        each = {key: tensor_digest(value) for key, value in _tensors_of(model, name).items()}
        found.append(hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest())
    return found


def describe_part(path: str, label: str, part: nn.Module) -> dict[str, Any]:
    """What the description says of one part: where it sits, and the options that are its own."""
    described: dict[str, Any] = {"path": path, "part": label}
    if isinstance(part, Module):
        site = part.site
        described |= {"shape": list(site.shape), "groups": site.groups, "transposed": site.transposed}
        described |= {"kind": "block"} if site.kind == "block" else {}
        described |= {"options": part.settled} if part.settled else {}
    return described


def check_base(base: tuple[str, dict[str, str]], file: AdapterFile, *, force: bool = False) -> None:
    """Raise unless an adapter was made for the base of this fingerprint; with `force`, warn.

    Raises:
        AdapterFileError: Naming both fingerprints and where the two differ.
    """
    found, tensors = base
    expected = file.config["base"]["fingerprint"]
    if found == expected:
        return
    recorded: dict[str, Any] = file.config["base"]["tensors"]
    differing = [name for name in tensors if recorded.get(name) != tensors[name]] + sorted(
        recorded.keys() - tensors.keys()
    )
    detail = (
        f"{len(differing)} of {len(recorded | tensors)} tensors differ, first {differing[0]!r}" if differing else ""
    )
    message = f"{file.path}: made for the base {expected[:16]}, this model is {found[:16]} ({detail})."
    if not force:
        raise AdapterFileError(f"{message} Load the weights it was trained on, or force=True.")
    warnings.warn(
        f"{message} Loaded all the same, because force=True: results are not those of the adapter.",
        stacklevel=3,
    )


def rebuild_parts(model: nn.Module, file: AdapterFile) -> tuple[Attached, list[Part]]:
    """What an adapter file holds, as parts for the layers of this model; nothing is attached.

    Raises:
        AdapterFileError: If the file and the model do not fit, or the file is no adapter's.
    """
    config = file.config
    try:
        given: dict[str, Any] = dict(config["options"])
        policy = given.pop("rank_policy", "clamp")
        requests = {request.name: request for request in read_requests(config["method"], given)}
        known = all_sites(model)
        if any(described.get("kind") == "block" for described in config["parts"]):
            known += find_blocks(model)
        sites = {(site.path, site.tensor): site for site in known}
        statistics = {path for path, _ in norms_with_statistics(model)}
        parts: list[Part] = []
        for described in config["parts"]:
            parts.append(_rebuild_part(model, file, described, sites, statistics, requests))
        used = [f"{path}:{label}.{key}" for path, label, part in parts for key in part.state_dict()]
        extra = sorted(file.tensors.keys() - set(used))
        if extra or len(used) != len(file.tensors):
            raise AdapterFileError(f"tensor {(extra or used)[0]!r} belongs to no layer or to two. Get the file again.")
        record = Attached(
            config["method"],
            options_of(tuple(requests.values())) | {"rank_policy": policy},
            config["norm"],
            None if config["classes"] is None else tuple(config["classes"]),
            config["num_classes"],
            next(iter(requests.values())).method.learning_rate,
        )
    except (ConvpeftError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise AdapterFileError(f"{file.path}: {one_line(error)}") from None
    return record, [(path, label.partition("@")[0], part) for path, label, part in parts]


def _rebuild_part(
    model: nn.Module,
    file: AdapterFile,
    described: Mapping[str, Any],
    sites: Mapping[tuple[str, str], Site],
    statistics: set[str],
    requests: Mapping[str, Request],
) -> Part:
    path, label = described["path"], described["part"]
    kind, _, tensor = label.partition("@")
    if kind == "norm" and path in statistics:
        part: Module | NormStatistics = NormStatistics(model.get_submodule(path))
    else:
        site = sites.get((path, "" if described.get("kind") == "block" else tensor or "weight"))
        if site is None:
            raise AdapterFileError(
                f"the model has no layer {path!r} that an adapter could sit on. Load the right base."
            )
        if (
            kind != "head"
            and file.config["num_classes"]
            and any(other["path"] == path and other["part"] == "head" for other in file.config["parts"])
        ):  # what acts on top of a fresh head sees its classes
            site = dataclasses.replace(site, shape=(file.config["num_classes"], *site.shape[1:]), bias=True)
        if [list(site.shape), site.groups, site.transposed] != [
            described.get(k) for k in ("shape", "groups", "transposed")
        ]:
            raise AdapterFileError(
                f"made for another {site.describe()}: shape {described.get('shape')}. Load the right base."
            )
        if kind == "head":
            part = FreshHead(site, num_classes=file.config["num_classes"])
        elif kind in requests:
            request, own = requests[kind], described.get("options", {})
            part = request.form(site, **(request.options | own))
            part.settled = dict(own)
        elif kind == "full":
            part = method_class("full")(site)
        else:
            raise AdapterFileError(f"part {label!r} at {path!r} is of no known kind. Upgrade convpeft.")
    _fill(part, f"{path}:{label}.", file.tensors)
    device = next(iter(model.get_submodule(path).parameters(recurse=False)), torch.empty(0)).device
    return path, label, part.to(device=device)


def _fill(part: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Take a part's tensors from the file, in the file's dtype; names and shapes have to agree."""
    for key, own in part.state_dict().items():
        found = tensors.get(prefix + key)
        if found is None:
            raise AdapterFileError(f"tensor {prefix + key!r} is missing. Get the file again.")
        if found.shape != own.shape or found.is_floating_point() != own.is_floating_point():
            raise AdapterFileError(
                f"tensor {prefix + key!r}: expected shape {tuple(own.shape)}, got {tuple(found.shape)}. "
                "Get the file again."
            )
    floats = [value.dtype for key, value in tensors.items() if key.startswith(prefix) and value.is_floating_point()]
    if floats:
        part.to(dtype=floats[0])
    part.load_state_dict({key: tensors[prefix + key] for key in part.state_dict()}, strict=True)
