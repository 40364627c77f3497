"""Maps of layers as small ONNX functions: traced from the methods' own code, without any of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import onnx
import torch
from onnx import FunctionProto, GraphProto, NodeProto, ValueInfoProto, helper
from onnxscript import optimizer
from torch import Tensor, nn

from convpeft.adapters import Adapter
from convpeft.composing import compose, has_joint_bias
from convpeft.deployment.graphs import quiet_exporter
from convpeft.errors import ModelError

DOMAIN = "convpeft.map"
OPSET = 18
_LARGEST_FOLDED = 64  # numbers; what is longer is computed again on the device, so that the map stays small
_LARGEST_CONSTANT = 1024  # bytes of one function


Typed = tuple[int, tuple[int, ...]]  # ONNX type and shape of a tensor


@dataclass(frozen=True)
class Traced:
    """The map of one layer: a function, and the names of what goes in and comes out.

    Attributes:
        function: The nodes; its own names are always the same for equal maps.
        inputs: `weight` and `bias` (the layer's own), or `(number of the part, key of its tensor)`.
        outputs: `weight`, `bias` or both: what the map changes, with type and shape.
    """

    function: FunctionProto
    inputs: tuple[str | tuple[int, str], ...]
    outputs: dict[str, Typed]


@dataclass(frozen=True)
class Composition:
    """What is traced: the adapters of one tensor of one layer, in order.

    Attributes:
        own: The layer's own `weight`, and its `bias` where it has one that belongs to that.
        parts: The adapters.
    """

    own: dict[str, Tensor]
    parts: tuple[Adapter, ...]

    @property
    def given(self) -> dict[str | tuple[int, str], Tensor]:
        """Everything that the map is computed from, as `Traced.inputs` names it."""
        stored = {(n, key): value for n, part in enumerate(self.parts) for key, value in part.state_dict().items()}
        return {**self.own, **stored}


def composition_of(layer: nn.Module, tensor: str, parts: Sequence[Adapter]) -> Composition:
    """What these adapters act on in a layer."""
    bias = layer._parameters.get("bias") if tensor == "weight" and has_joint_bias(layer) else None
    weight = {"weight": cast(Tensor, layer._parameters[tensor])}
    return Composition(weight if bias is None else weight | {"bias": bias}, tuple(parts))


def trace_maps(compositions: Sequence[Composition]) -> list[Traced]:
    """Trace the map of each composition; all at once, because the exporter takes long to start.

    Raises:
        ModelError: If a method computes with numbers that it does not store, or cannot be traced.
    """
    tensors = [tuple(value.detach().to("cpu") for value in each.given.values()) for each in compositions]
    with torch.no_grad():
        modules = [_AsFunction(each) for each in compositions]
        counts = [len(module(*given)) for module, given in zip(modules, tensors, strict=True)]
        with quiet_exporter():
            try:
                module = _SideBySide(modules, [len(given) for given in tensors])
                program = _export(module.eval(), tuple(value for given in tensors for value in given))
            except Exception as error:
                names = "+".join(sorted({part.method_name for each in compositions for part in each.parts} - {""}))
                raise ModelError(
                    f"the map of {names} cannot be traced ({type(error).__name__}). Export the merged network instead."
                ) from error
    graph, traced = program.model_proto.graph, list[Traced]()
    inputs, outputs = iter(graph.input), iter(graph.output)
    for each, given, count in zip(compositions, tensors, counts, strict=True):
        own_inputs = [next(inputs).name for _ in given]
        traced.append(_as_function(graph, each, own_inputs, [next(outputs) for _ in range(count)]))
    return traced


def _export(module: nn.Module, tensors: tuple[Tensor, ...]) -> Any:
    program: Any = torch.onnx.export(module, tensors, dynamo=True, optimize=False, verbose=False, opset_version=OPSET)
    # nothing more: its other rules take a ScatterND that adds to every row for one that replaces them
    optimizer.fold_constants(program.model, output_size_limit=_LARGEST_FOLDED)
    return program


class _Chain(nn.Module):
    """The parts of one layer in order, as `effective` runs them."""

    def __init__(self, parts: Sequence[Adapter]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return compose(cast(list[Adapter], list(self.parts)), weight, bias)


class _AsFunction(nn.Module):
    """A chain without tensors of its own: they are inputs, so that none is written into the graph."""

    def __init__(self, composition: Composition) -> None:
        super().__init__()
        self.chain = (_Chain(composition.parts),)  # in a tuple it is no submodule
        self.own = len(composition.own)
        self.keys = [f"parts.{key[0]}.{key[1]}" for key in composition.given if not isinstance(key, str)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        own = (*tensors[: self.own], None)[:2]
        stored = dict(zip(self.keys, tensors[self.own :], strict=True))
        found = cast(tuple[Tensor, Tensor | None], torch.func.functional_call(self.chain[0], stored, own))
        return tuple(each for each in found if each is not None)


class _SideBySide(nn.Module):
    """Several functions in one graph, their inputs and outputs one after the other."""

    def __init__(self, functions: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.functions, self.counts = tuple(functions), tuple(counts)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for function, count in zip(self.functions, self.counts, strict=True):
            found += function(*tensors[:count])
            tensors = tensors[count:]
        return tuple(found)


def _as_function(
    graph: GraphProto, composition: Composition, inputs: list[str], outputs: list[ValueInfoProto]
) -> Traced:
    """The nodes between these values, under names that depend on nothing but their order."""
    origin = dict(zip(inputs, composition.given, strict=True))
    told = dict(zip(("weight", "bias"), outputs, strict=False))
    passed = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    changed = {which: each for which, each in told.items() if origin.get(passed.get(each.name, each.name)) != which}
    # an output that is an input as it stands gets a node, since a function's outputs are made in it
    made = {which: f"{each.name} itself" if each.name in origin else each.name for which, each in changed.items()}
    direct = [helper.make_node("Identity", [name], [f"{name} itself"]) for name in inputs]
    constants = [_constant(each) for each in graph.initializer]
    nodes = _needed([*constants, *graph.node, *direct], set(made.values()))
    size = sum(attribute.t.ByteSize() for node in nodes if node.op_type == "Constant" for attribute in node.attribute)
    if size > _LARGEST_CONSTANT:
        first = composition.parts[0]
        raise ModelError(
            f"layer {first.site.path!r}: method {first.method_name!r} computes with a tensor that its adapter does not "
            "store. Register it as a persistent buffer."
        )
    used = {name for node in nodes for name in node.input}
    kept = [name for name in inputs if name in used]
    names = {"": ""} | {name: f"i{number}" for number, name in enumerate(kept)}
    renamed: list[NodeProto] = []
    for node in nodes:
        names |= {name: f"v{len(names) + number}" for number, name in enumerate(node.output)}
        plain = helper.make_node(node.op_type, [names[n] for n in node.input], [names[n] for n in node.output])
        plain.attribute.extend(node.attribute)
        for attribute in plain.attribute:
            attribute.ClearField("doc_string")
        renamed.append(plain)
    results = [names[name] for name in made.values()]
    opsets = [helper.make_opsetid("", OPSET)]
    function = helper.make_function(DOMAIN, "", [names[name] for name in kept], results, renamed, opsets)
    return Traced(function, tuple(origin[name] for name in kept), {which: _typed(v) for which, v in changed.items()})


def _constant(initializer: onnx.TensorProto) -> NodeProto:
    value = onnx.TensorProto()
    value.CopyFrom(initializer)
    value.name = ""
    return helper.make_node("Constant", [], [initializer.name], value=value)


def _typed(info: ValueInfoProto) -> Typed:
    return info.type.tensor_type.elem_type, tuple(each.dim_value for each in info.type.tensor_type.shape.dim)


def _needed(nodes: Sequence[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """The nodes that the wanted values come from, in order."""
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
