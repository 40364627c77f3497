"""The map that travels with an adapter: what becomes of each tensor of the base, as a small ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import FunctionProto, ModelProto, NodeProto, helper
from torch import Tensor, nn

from convpeft.adapter_description import MAP
from convpeft.adapter_file import AdapterFile, read_adapter
from convpeft.adapters import Adapter, Module
from convpeft.composing import acting, effective
from convpeft.deployment.map_file import NEW, TYPES, pack_map, read_map, run_map
from convpeft.deployment.map_graph import DOMAIN, OPSET, Composition, Traced, Typed, composition_of, trace_maps
from convpeft.errors import AdapterFileError, ModelError, one_line
from convpeft.fingerprints import base_tensors
from convpeft.injection import adapted_layers
from convpeft.models.loading import load_model
from convpeft.models.source import ModelSource
from convpeft.sites import all_sites, find_head
from convpeft.slots import HEAD, NormStatistics, slots_of
from convpeft.storage import load
from convpeft.writing import write_file

_NAME = "default"
_TOLERANCE = 1e-5  # of a tensor, relative to its largest number: float32 sums in another order


def write_patch_map(path: str | Path, model: nn.Module | None = None) -> Path:
    """Write `adapter_map.onnx.gz` beside an adapter, so that `convpeft patch` works where there is no torch.

    Args:
        path: An adapter or a run.
        model: A network of the base's architecture without adapters, where the adapter records none that can be built
            from its name; it is left with the adapter on it. Weights do not matter: the map holds none.

    Returns:
        The map's path.

    Raises:
        AdapterFileError: If the adapter is damaged or cannot be patched in, or the map cannot be written.
        ModelError: If the base cannot be built, or a method is no map of weights.
    """
    file = read_adapter(path)
    target = file.path / MAP
    content = make_patch_map(file.path, model)
    try:
        write_file(target, content)
    except OSError as error:
        raise AdapterFileError(f"{target}: the map cannot be written ({one_line(error)}). Free space.") from None
    return target


def make_patch_map(path: str | Path, model: nn.Module | None = None) -> bytes:
    """The content of an adapter's map, as `write_patch_map` writes it.

    Raises:
        AdapterFileError: If the adapter is damaged or cannot be patched in.
        ModelError: If the base cannot be built, or a method is no map of weights.
    """
    file = read_adapter(path)
    if file.config["below"]:
        raise AdapterFileError(
            f"{file.path}: was trained on top of other adapters, so it patches no base. Merge them and train on that."
        )
    for part in file.config["parts"]:
        if part.get("kind") == "block":
            raise ModelError(f"part {part['part']!r} at {part['path']!r} spans a block, which no patch can change.")
    model = _architecture(file) if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the weights are not those of the adapter
        load(model, file.path, name=_NAME, force=True)
    content = pack_map(_describe(model.eval()), adapter=file.config["digest"])
    _compare(model, content, file)
    return content


def _compare(model: nn.Module, content: bytes, file: AdapterFile) -> None:
    """Run the map as a device does, and see that it makes of each tensor what the adapter makes of it."""
    where = str(file.path / MAP)
    tensors = {**base_tensors(model), **file.tensors}
    made = run_map(
        read_map(content, where, adapter=file.config["digest"]),
        {name: value.detach().cpu().numpy() for name, value in tensors.items() if str(value.dtype) in TYPES},
        where,
    )
    for path, layer in adapted_layers(model):
        for tensor in {part.site.tensor for part in slots_of(layer).active((_NAME,)) if isinstance(part, Adapter)}:
            with torch.no_grad():
                weight, bias = effective(layer, tensor, (_NAME,), settled=True)
            for name, value in {tensor: weight, "bias": bias}.items():
                found = made.get(f"{path}.{name}".lstrip("."))
                if found is None or value is None:
                    continue
                expected = value.detach().cpu().numpy()
                if not np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(expected).max()):
                    raise ModelError(
                        f"layer {path!r}: the map's {name} is not what the adapter makes of it. Update onnxscript, or "
                        "export the merged network instead."
                    )


def _architecture(file: AdapterFile) -> nn.Module:
    """The base that the adapter records, with any weights."""
    if file.config["model"] is None:
        raise AdapterFileError(f"{file.path}: records no base to trace on. Call write_patch_map(path, model).")
    source = ModelSource.from_dict(file.config["model"], where=f"{file.path}: model")
    if source.imports_code:
        raise ModelError(
            f"model {source.source}: a file never leads to an import. Build it and call write_patch_map(path, model)."
        )

    def build(classes: int | None) -> nn.Module:
        return load_model(source.source, num_classes=classes, in_channels=source.in_channels, pretrained=False)

    with torch.random.fork_rng(devices=[]):
        model = build(source.num_classes)
        head = next((site for site in all_sites(model) if site.path == find_head(model)), None)
        classes = None if head is None else _classes_of_base(file, head.path)
        if head is None or classes in (None, head.out_channels):
            return model
        return build(classes)  # a weights file may have another number of them than the network by itself


def _classes_of_base(file: AdapterFile, head: str) -> int | None:
    """Rows of the base's own head, where a part of the adapter is on it; a fresh head knows what it stands for."""
    shapes = {part["part"]: part.get("shape") for part in file.config["parts"] if part["path"] == head}
    shape: Any = shapes.get(HEAD) or next(iter(shapes.values()), None)
    return shape[0] if isinstance(shape, list) and shape else None


def _describe(model: nn.Module) -> ModelProto:
    """A graph with one call of a function for each layer; equal maps are one function."""
    functions: dict[bytes, FunctionProto] = {}
    nodes: list[NodeProto] = []
    given: dict[str, Tensor] = {}
    made: list[onnx.ValueInfoProto] = []
    base = base_tensors(model)
    for inputs, outputs, traced in _layers(model):
        plain = traced.function.SerializeToString()
        if plain not in functions:
            functions[plain] = onnx.FunctionProto.FromString(plain)
            functions[plain].name = f"map{len(functions)}"
        nodes.append(
            helper.make_node(functions[plain].name, list(inputs), [NEW + name for name in outputs], domain=DOMAIN)
        )
        given |= inputs
        made += [helper.make_tensor_value_info(NEW + name, *typed) for name, typed in outputs.items()]
    clash = sorted(key for key in given if key in base and given[key].data_ptr() != base[key].data_ptr())
    if clash:
        raise ModelError(f"tensor {clash[0]!r} of the adapter is called like one of the base. Rename the module.")
    told = [helper.make_tensor_value_info(name, _type_of(each), each.shape) for name, each in given.items()]
    graph = helper.make_graph(nodes, "map", told, made)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions.values()), ir_version=9)


def _layers(model: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Typed], Traced]]:
    """For each map: the tensors that go in, those that come out, and the function."""
    found: list[tuple[str, dict[int, str], str, Composition]] = []
    kinds: dict[str, Composition] = {}
    for path, layer in adapted_layers(model):
        labels = {id(part): label for label, part in slots_of(layer).parts(_NAME)}
        for part in slots_of(layer).active((_NAME,)):
            if isinstance(part, NormStatistics):
                yield from _statistics(path, part)
            elif isinstance(part, Module) and part.mergeable == "never":
                raise ModelError(
                    f"method {part.method_name!r} at {path!r} is no map of weights and cannot be patched in. "
                    "Export the whole network."
                )
        adapters = [part for part in slots_of(layer).active((_NAME,)) if isinstance(part, Adapter)]
        for tensor in dict.fromkeys(part.site.tensor for part in adapters):
            composition = composition_of(layer, tensor, acting(layer, tensor, (_NAME,), settled=True))
            found.append((path, labels, tensor, composition))
            kinds.setdefault(_kind(composition, labels), composition)
    traced = dict(zip(kinds, trace_maps(list(kinds.values())), strict=True)) if kinds else {}
    for path, labels, tensor, composition in found:
        function = traced[_kind(composition, labels)]
        yield *_named(path, tensor, composition, labels, function), function


def _kind(composition: Composition, labels: dict[int, str]) -> str:
    """What two layers have in common whose maps are the same."""
    parts = [
        (labels[id(part)], part.settled, replace(part.site, path="", stage=None, last_stage=False))
        for part in composition.parts
    ]
    return repr((parts, [(key, value.shape, value.dtype) for key, value in composition.given.items()]))


def _named(
    path: str, tensor: str, composition: Composition, labels: dict[int, str], traced: Traced
) -> tuple[dict[str, Tensor], dict[str, Typed]]:
    """The names that a map's inputs and outputs have in the base and in the adapter file."""

    def own(which: str) -> str:
        return f"{path}.{tensor if which == 'weight' else which}".lstrip(".")

    def name(key: str | tuple[int, str]) -> str:
        return own(key) if isinstance(key, str) else f"{path}:{labels[id(composition.parts[key[0]])]}.{key[1]}"

    inputs = {name(key): composition.given[key] for key in traced.inputs}
    return inputs, {own(which): typed for which, typed in traced.outputs.items()}


def _statistics(path: str, part: NormStatistics) -> Iterator[tuple[dict[str, Tensor], dict[str, Typed], Traced]]:
    """Statistics of a norm are the adapter's own; the counter is no part of a base's fingerprint."""
    nodes = [helper.make_node("Identity", ["i0"], ["v1"])]
    function = helper.make_function(DOMAIN, "", ["i0"], ["v1"], nodes, [helper.make_opsetid("", OPSET)])
    for key, value in part.state_dict().items():
        if key != "num_batches_tracked":
            typed = (_type_of(value), tuple(value.shape))
            yield {f"{path}:norm.{key}": value}, {f"{path}.{key}".lstrip("."): typed}, Traced(function, (), {})


def _type_of(tensor: Tensor) -> int:
    name = str(tensor.dtype)
    if name not in TYPES:
        raise ModelError(f"a tensor of {name} has no place in a patch. Cast base and adapter to float32.")
    return TYPES[name].onnx
