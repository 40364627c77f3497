"""The base network as an ONNX file: read, compared with an adapter's fingerprint, and given new tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convpeft.deployment.map_file import TYPES
from convpeft.deployment.plain_adapter import array_digest
from convpeft.errors import AdapterFileError, RunError, one_line

Array = NDArray[Any]
_SHORT = 16  # hexadecimal digits that an adapter records of each tensor's digest
_LARGEST_FILE = 2**31 - 1  # bytes; protobuf reads no more
_REMEDY = "Make it again with convpeft export RUN --base --to onnx."
# The operations with a bias, which is their third input.
_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def read_base(path: Path) -> ModelProto:
    """Read a network from one ONNX file.

    Raises:
        RunError: If it is no whole, well-formed ONNX file.
    """
    try:
        if not path.is_file():  # a named pipe would be waited for
            raise ValueError("there is no such file")
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path.stat().st_size} bytes are too many for one file")
        model = ModelProto.FromString(path.read_bytes())
        for tensor in _tensors(model):
            if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
                raise ValueError(f"tensor {tensor.name!r} lies in another file, expected one file with all of them")
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise RunError(f"{one_line(path)}: is no readable network ({one_line(error)}). {_REMEDY}") from None
    return model


def base_arrays(model: ModelProto, path: Path, recorded: Mapping[str, Any]) -> dict[str, Array]:
    """The tensors that an adapter relies on, once all of them are those that it was trained on.

    Args:
        model: The network.
        path: What errors call it.
        recorded: The adapter's `base`: the fingerprint of all tensors and a short digest of each.

    Raises:
        AdapterFileError: If any tensor of the base is missing or differs, by however little.
    """
    present = {each.name: each for each in model.graph.initializer}
    found: dict[str, Array] = {}
    digests: dict[str, str] = {}
    for name, digest in sorted(recorded["tensors"].items()):
        array = _array(present.get(name))
        if array is not None:
            found[name], digests[name] = array, array_digest(array)
        if array is None or digests[name][:_SHORT] != digest:
            what = "lacks" if array is None else "has another"
            raise AdapterFileError(
                f"{path}: is not the base that the adapter was made for: it {what} tensor {name!r}. {_REMEDY}"
            )
    total = hashlib.sha256("".join(f"{name}={digests[name]};" for name in sorted(digests)).encode()).hexdigest()
    if total != recorded["fingerprint"]:
        raise AdapterFileError(
            f"{path}: is not the base that the adapter was made for: fingerprint {total[:_SHORT]}, expected "
            f"{recorded['fingerprint'][:_SHORT]}. {_REMEDY}"
        )
    return found


def put_tensors(model: ModelProto, tensors: Mapping[str, Array]) -> None:
    """Write new tensors over those of the same name; a bias that is new becomes an input of its layer.

    Raises:
        RunError: If a new bias has no layer to go to.
    """
    present = {each.name: each for each in model.graph.initializer}
    for name, array in tensors.items():
        if name in present:
            present[name].CopyFrom(numpy_helper.from_array(array, name))
        else:
            _add_bias(model, name, array)


def settle_classes(model: ModelProto, weight: str, *, old: int, new: int) -> None:
    """Let the graph behind a fresh head, and its output, have as many classes as that.

    Args:
        model: The network, its new tensors in place.
        weight: Name of the head's weight.
        old: Classes that the graph was made with.
        new: Classes of the head.

    Raises:
        RunError: If the graph computes with the old number elsewhere.
    """
    graph = model.graph
    del graph.value_info[:]
    if old != new:
        _renumber(graph, weight, old, new)
    outputs = list(graph.output)
    ranks = [len(each.type.tensor_type.shape.dim) for each in outputs]
    for each in outputs:
        each.type.tensor_type.ClearField("shape")
    try:
        known = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise RunError(f"the base's graph does not fit the new head ({one_line(error)}). {_REMEDY}") from None
    for each, inferred, rank in zip(outputs, known.graph.output, ranks, strict=True):
        dims = inferred.type.tensor_type.shape.dim
        if len(dims) != rank or not any(dim.dim_value == new for dim in dims):
            raise RunError(f"the base's output {each.name!r} does not follow its head's {new} classes. {_REMEDY}")
        each.type.CopyFrom(inferred.type)


def _renumber(graph: onnx.GraphProto, weight: str, old: int, new: int) -> None:
    """Change the number of classes where a Reshape behind the head has it written down."""
    makers = {name: node for node in graph.node for name in node.output}
    reached = {weight}
    for node in graph.node:
        if reached & set(node.input):
            reached.update(node.output)
            if node.op_type == "Reshape":
                for constant in _constants(node.input[1], makers):
                    _replace(constant, old, new)


def _constants(name: str, makers: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """The constants that a shape is put together from."""
    node = makers.get(name)
    if node is not None and node.op_type == "Constant":
        yield node
    elif node is not None and node.op_type == "Concat":
        for each in node.input:
            yield from _constants(each, makers)


def _replace(constant: NodeProto, old: int, new: int) -> None:
    for attribute in constant.attribute:
        if attribute.name == "value_ints":
            attribute.ints[:] = [new if each == old else each for each in attribute.ints]
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.INT64:
            sizes = numpy_helper.to_array(attribute.t)
            attribute.t.CopyFrom(numpy_helper.from_array(np.where(sizes == old, np.int64(new), sizes)))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for each in model.graph.sparse_initializer:
        yield each.values
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _array(tensor: TensorProto | None) -> Array | None:
    """A tensor's numbers; None for none, or of a type that no base has."""
    if tensor is None or tensor.data_type not in {each.onnx for each in TYPES.values()}:
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception:  # too few or too many bytes for its shape
        return None


def _add_bias(model: ModelProto, name: str, array: Array) -> None:
    """Add a bias to every use of the weight beside it, through whatever the graph does to that weight."""
    graph = model.graph
    weight = name.removesuffix("bias") + "weight"
    graph.initializer.append(numpy_helper.from_array(array, name))
    reached, ordered, used = {weight}, list[NodeProto](), 0
    for node in graph.node:  # in order, so that what comes from the weight is known before its use
        place = next((number for number, each in enumerate(node.input) if each in reached), None)
        new = [node]
        if place == 1 and node.op_type in (*_WITH_BIAS, "MatMul"):
            used += 1
            new = _with_bias(node, name)
        elif place is not None:
            reached.update(node.output)
        ordered += new
    if not used:
        raise RunError(f"the base's graph has no layer that takes the new {name!r}. {_REMEDY}")
    del graph.node[:]
    graph.node.extend(ordered)


def _with_bias(node: NodeProto, bias: str) -> list[NodeProto]:
    """The nodes that compute the same and add a bias; what the layer has for one already, zeros, stays."""
    changed = NodeProto()
    changed.CopyFrom(node)
    if node.op_type == "MatMul":
        changed.output[0] = f"{node.output[0]} without {bias}"
        return [changed, helper.make_node("Add", [changed.output[0], bias], node.output)]
    if len(node.input) == 2 or not node.input[2]:
        del changed.input[2:]
        changed.input.append(bias)
        return [changed]
    changed.input[2] = f"{node.output[0]} with {bias}"
    return [helper.make_node("Add", [node.input[2], bias], [changed.input[2]]), changed]
