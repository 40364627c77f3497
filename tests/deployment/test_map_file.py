"""A map from a stranger computes what a map computes, in little memory, or is refused."""

import gzip
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from convpeft.deployment import map_file
from convpeft.deployment.map_file import pack_map, read_map, run_map
from convpeft.errors import AdapterFileError
from measuring import measured

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def graph(*nodes: onnx.NodeProto, output: str = "y") -> ModelProto:
    """A map with one function of one tensor."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("convpeft.map", 1)]
    function = helper.make_function("convpeft.map", "map1", ["x"], [output], list(nodes), opsets[:1])
    call = helper.make_node("map1", ["a.weight"], ["new a.weight"], domain="convpeft.map")
    inputs = [helper.make_tensor_value_info("a.weight", TensorProto.FLOAT, (3, 4))]
    outputs = [helper.make_tensor_value_info("new a.weight", TensorProto.FLOAT, (3, 4))]
    made = helper.make_graph([call], "map", inputs, outputs)
    return helper.make_model(made, opset_imports=opsets, functions=[function], ir_version=9)


def run(model: ModelProto) -> np.ndarray:
    read = read_map(pack_map(model, adapter="abc"), "map", adapter="abc")
    return run_map(read, {"a.weight": MATRIX}, "map")["a.weight"]


def node(operation: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operation, list(inputs), ["y"], **attributes)


def test_map_is_computed() -> None:
    assert np.array_equal(run(graph(node("Add", "x", "x"))), 2 * MATRIX)


def long_chain(length: int) -> ModelProto:
    names = ["x", *(f"v{number}" for number in range(length - 1)), "y"]
    return graph(*(helper.make_node("Neg", [a], [b]) for a, b in pairwise(names)))


def external() -> ModelProto:
    value = TensorProto(data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="/etc/passwd")
    return graph(helper.make_node("Constant", [], ["c"], value=value), node("Add", "x", "c"))


def subgraph() -> ModelProto:
    inner = helper.make_graph([], "g", [], [])
    return graph(node("Identity", "x", body=inner))


def changed(change: Callable[[ModelProto], object]) -> ModelProto:
    model = graph(node("Neg", "x"))
    change(model)
    return model


TEN_MILLION = constant("c", np.array([10_000_000], np.int64))
REFUSED = {
    "an operation with side effects": (graph(node("Loop", "x")), "operation 'Loop' is none of a map's"),
    "an operation of another domain": (graph(node("Neg", "x", domain="evil")), "operation 'Neg' is none of a map's"),
    "a graph inside": (subgraph(), "attribute 'body' holds what no map does"),
    "a tensor in another file": (external(), "attribute 'value' lies in another file"),
    "a value from nowhere": (graph(node("Neg", "z")), "takes a value that nothing makes, or makes one twice"),
    "an output from nowhere": (graph(node("Neg", "x"), output="z"), "an output is made by nothing"),
    "too many operations": (long_chain(500), "500 operations in one function are too many"),
    "tensors of its own": (
        changed(lambda m: m.graph.initializer.append(numpy_helper.from_array(MATRIX, "t"))),
        "it holds tensors, or two functions of one name",
    ),
    "an unknown function": (
        changed(lambda m: setattr(m.graph.node[0], "op_type", "map2")),
        "it calls 'map2', which is none of its functions",
    ),
    "a call with other inputs": (
        changed(lambda m: m.graph.node[0].input.append("b")),
        "it calls 'map1' with other inputs or outputs",
    ),
    "a tensor that is not new": (
        changed(lambda m: m.graph.node[0].output.__setitem__(0, "a.weight")),
        "which is no new tensor or made twice",
    ),
    "a tensor made twice": (changed(lambda m: m.graph.node.append(m.graph.node[0])), "or made twice"),
    "a tensor that is not there": (
        changed(lambda m: m.graph.node[0].input.__setitem__(0, "b.weight")),
        "asks for tensor 'b.weight', which neither base nor adapter has",
    ),
    "a large array": (graph(TEN_MILLION, node("ConstantOfShape", "c")), "gives an array of no known or of too large"),
    "a huge range": (
        graph(*(constant(n, np.int64(v)) for n, v in (("a", 0), ("b", 2**40), ("c", 1))), node("Range", "a", "b", "c")),
        "gives an array of no known or of too large",
    ),
    "an array of unknown size": (graph(node("Reshape", "x", "x")), "cannot make 'new a.weight'"),
    "a shape that does not fit": (graph(constant("c", np.array([5, 5])), node("Reshape", "x", "c")), "cannot make"),
    "a product that takes for ever": (
        graph(
            node("Einsum", *["x"] * 11, equation="ab,cd,ef,gh,ij,kl,mn,op,qr,st,uv->a"),
        ),
        "operation 'Einsum' takes too long",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_map_is_refused(case: str) -> None:
    model, message = REFUSED[case]
    with pytest.raises(AdapterFileError) as refusal:
        run(model)
    assert message in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_hostile_map_takes_little_memory() -> None:
    import tracemalloc

    doubled = [helper.make_node("Expand", ["x", "c"], ["y"])]
    tracemalloc.start()
    for size in (2**20, 2**33, 2**62):
        with pytest.raises(AdapterFileError, match="of no known or of too large"):
            run(graph(constant("c", np.array([size, 3, 4])), *doubled))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    measured("peak bytes", peak)
    assert peak < 2**20


def test_map_of_another_version_or_format_is_refused(monkeypatch) -> None:
    with pytest.raises(AdapterFileError, match="no convpeft-map file"):
        read_map(gzip.compress(graph(node("Neg", "x")).SerializeToString()), "map", adapter="abc")
    content = pack_map(graph(node("Neg", "x")), adapter="abc")
    monkeypatch.setattr(map_file, "FORMAT_VERSION", "0")
    with pytest.raises(AdapterFileError, match="format version '1', this convpeft reads 0; upgrade convpeft"):
        read_map(content, "map", adapter="abc")


def test_map_that_is_too_large_is_refused() -> None:
    with pytest.raises(AdapterFileError, match="it is cut off, or larger than any map"):
        read_map(gzip.compress(bytes(2**30)), "map", adapter="abc")


def test_every_flipped_byte_of_a_map_is_noticed() -> None:
    content = gzip.decompress(pack_map(graph(node("Add", "x", "x")), adapter="abc"))
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 0x11
        with pytest.raises(AdapterFileError):
            read_map(gzip.compress(bytes(flipped), 1), "map", adapter="abc")
