"""The map's file, from a machine that is not trusted: checked node by node, then run on numpy arrays."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_shapes

from convpeft.errors import AdapterFileError, one_line

Array = NDArray[Any]
NEW = "new "  # begins the name of what the map makes of a base's tensor
FORMAT = "convpeft-map"
FORMAT_VERSION = "1"
LARGEST_FILE = 8 * 2**20  # bytes, unpacked too; a hundred times what the largest network needs
_MOST_NODES = 200  # of one layer's map
_MOST_GROWTH = 32  # numbers of all steps of one layer, for each that goes in
_SMALL = 2**16  # numbers that they may have anyway
_MOST_PRODUCTS = 2**34  # multiplications of one step

_UNKNOWN = 2**62  # numbers of a step whose size cannot be told

# All that the maps of the methods are made of: each gives an array whose size is known beforehand.
OPERATIONS = frozenset(
    (
        "Abs",
        "Add",
        "Cast",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Einsum",
        "Expand",
        "Gemm",
        "Greater",
        "Identity",
        "MatMul",
        "Mul",
        "Neg",
        "Pad",
        "Range",
        "Reciprocal",
        "ReduceL2",
        "ReduceSum",
        "Reshape",
        "ScatterND",
        "Sign",
        "Sqrt",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    )
)


@dataclass(frozen=True)
class Type:
    """One type of numbers: how ONNX and numpy call what torch calls by its key in `TYPES`."""

    onnx: int
    numpy: np.dtype[Any]


TYPES = {
    f"torch.{name}": Type(number, np.dtype(name))
    for name, number in {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
        "int64": TensorProto.INT64,
        "int32": TensorProto.INT32,
        "uint8": TensorProto.UINT8,
        "bool": TensorProto.BOOL,
    }.items()
}


def pack_map(model: ModelProto, *, adapter: str) -> bytes:
    """The file's content: the graph with its format, the digest of its adapter, and its own digest."""
    helper.set_model_props(model, {"format": FORMAT, "format_version": FORMAT_VERSION, "adapter": adapter})
    digest = _digest(model)
    model.metadata_props.add(key="digest", value=digest)
    return gzip.compress(model.SerializeToString(deterministic=True), mtime=0)


def unpack_map(content: bytes) -> ModelProto:
    """The graph in a file that `pack_map` has made, unchecked.

    Raises:
        ValueError: If it is not packed as that does, or larger than any map.
    """
    stream = zlib.decompressobj(wbits=31)  # gzip
    try:
        plain = stream.decompress(content, LARGEST_FILE)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof or stream.unused_data:
        raise ValueError("it is cut off, or larger than any map")
    return ModelProto.FromString(plain)


def read_map(content: bytes, where: str, *, adapter: str) -> ModelProto:
    """Read a map and check everything that can be checked without tensors.

    Args:
        content: The file.
        where: What errors call it.
        adapter: Digest of the adapter that it must belong to.

    Raises:
        AdapterFileError: If it is damaged, belongs to another adapter, or does what no map does.
    """
    try:
        model = unpack_map(content)
        told = {each.key: each.value for each in model.metadata_props}
        if told.get("format") != FORMAT:
            raise ValueError(f"no {FORMAT} file")
        if told.get("format_version") != FORMAT_VERSION:
            found = told.get("format_version")
            raise ValueError(f"format version {found!r}, this convpeft reads {FORMAT_VERSION}; upgrade convpeft")
        if told.get("digest") != _digest(model):
            raise ValueError("it is not the one that was written")
        _check(model)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise AdapterFileError(f"{where}: is no readable map ({one_line(error)}). Get the file again.") from None
    if told.get("adapter") != adapter:
        raise AdapterFileError(
            f"{where}: is the map of another adapter. Make it again with convpeft export RUN --to patch."
        )
    return model


def run_map(model: ModelProto, tensors: Mapping[str, Array], where: str) -> dict[str, Array]:
    """The new tensors, by the names that the base's have.

    Args:
        model: What `read_map` returned.
        tensors: The base's and the adapter's tensors by name.
        where: What errors call the map.

    Raises:
        AdapterFileError: If a tensor is missing, or a step fails or needs more memory than a map does.
    """
    functions = {each.name: each for each in model.functions}
    made: dict[str, Array] = {}
    for node in model.graph.node:
        lacking = [name for name in node.input if name not in tensors]
        if lacking:
            raise AdapterFileError(f"{where}: asks for tensor {lacking[0]!r}, which neither base nor adapter has.")
        try:
            results = _run(functions[node.op_type], [tensors[name] for name in node.input])
        except Exception as error:  # whatever numpy makes of shapes that do not fit
            raise AdapterFileError(
                f"{where}: cannot make {node.output[0]!r} ({one_line(error)}). Get the file again."
            ) from None
        made |= {name.removeprefix(NEW): result for name, result in zip(node.output, results, strict=True)}
    return made


def _digest(model: ModelProto) -> str:
    """SHA-256 over everything in the map but the digest itself."""
    rest = ModelProto()
    rest.CopyFrom(model)
    kept = [each for each in model.metadata_props if each.key != "digest"]
    del rest.metadata_props[:]
    rest.metadata_props.extend(kept)
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


def _check(model: ModelProto) -> None:
    """Calls of known functions, and functions of known operations on names that were made before."""
    functions = {each.name: each for each in model.functions}
    graph = model.graph
    if len(functions) != len(model.functions) or graph.initializer or graph.sparse_initializer:
        raise ValueError("it holds tensors, or two functions of one name")
    for function in model.functions:
        _check_function(function)
    made: set[str] = set()
    for node in graph.node:
        function = functions.get(node.op_type)
        if function is None or node.attribute:
            raise ValueError(f"it calls {node.op_type!r}, which is none of its functions")
        if len(node.input) != len(function.input) or len(node.output) != len(function.output):
            raise ValueError(f"it calls {node.op_type!r} with other inputs or outputs")
        for name in node.output:
            if not name.startswith(NEW) or name in made:
                raise ValueError(f"it makes {name!r}, which is no new tensor or made twice")
            made.add(name)


def _check_function(function: FunctionProto) -> None:
    known = {*function.input, ""}
    if len(function.node) > _MOST_NODES or not function.output:
        raise ValueError(f"{len(function.node)} operations in one function are too many, or it has no output")
    for node in function.node:
        if node.op_type not in OPERATIONS or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            raise ValueError(f"operation {node.op_type!r} is none of a map's")
        if not known.issuperset(node.input) or node.output[0] in known:
            raise ValueError(f"operation {node.op_type!r} takes a value that nothing makes, or makes one twice")
        for attribute in node.attribute:
            _check_attribute(attribute)
        known.add(node.output[0])
    if not known.issuperset(function.output):
        raise ValueError("an output is made by nothing")


def _check_attribute(attribute: AttributeProto) -> None:
    allowed = (AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS, AttributeProto.STRING)
    if attribute.ref_attr_name or attribute.type not in (*allowed, AttributeProto.TENSOR):
        raise ValueError(f"attribute {attribute.name!r} holds what no map does")
    if attribute.type == AttributeProto.TENSOR:
        tensor = attribute.t
        if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
            raise ValueError(f"attribute {attribute.name!r} lies in another file")


def _run(function: FunctionProto, given: list[Array]) -> list[Array]:
    """Run one function, once the size of every step is known to be small."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
        for name, each in zip(function.input, given, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in function.output]
    graph = helper.make_graph(list(function.node), "map", inputs, outputs)
    model = helper.make_model(graph, opset_imports=list(function.opset_import), ir_version=9)
    known = infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    shapes = {each.name: _shape(each) for each in (*known.input, *known.value_info, *known.output)}
    room = _MOST_GROWTH * sum(each.size for each in given) + _SMALL
    for node in function.node:
        room -= math.prod(shapes.get(node.output[0], (_UNKNOWN,)))
        if room < 0:
            raise ValueError(f"operation {node.op_type!r} gives an array of no known or of too large a size")
        if _products(node, shapes) > _MOST_PRODUCTS:
            raise ValueError(f"operation {node.op_type!r} takes too long")
    found = cast(list[Any], ReferenceEvaluator(model).run(None, dict(zip(function.input, given, strict=True))))
    return [np.asarray(each) for each in found]


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = info.type.tensor_type.shape.dim
    if not info.type.tensor_type.HasField("shape") or any(not each.HasField("dim_value") for each in dims):
        return (_UNKNOWN,)
    return tuple(each.dim_value for each in dims)


def _products(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How often a product of arrays multiplies: once for each index of the result and each one summed over."""
    if node.op_type in ("MatMul", "Gemm"):
        inner = shapes.get(node.input[0], (1,))
        return math.prod(shapes.get(node.output[0], (1,))) * max(inner, default=1)
    if node.op_type == "Einsum":
        equation = next((each.s.decode() for each in node.attribute if each.name == "equation"), "")
        sizes: dict[str, int] = {}
        for term, name in zip(equation.replace(" ", "").partition("->")[0].split(","), node.input, strict=True):
            sizes |= dict(zip(term, shapes[name], strict=True))
        return math.prod(sizes.values())
    return 0
