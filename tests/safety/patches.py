"""A base as ONNX and the map of an adapter on it, small and written by hand, for attacks on `convpeft patch`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from convpeft.adapter_description import CONFIG
from convpeft.deployment.map_file import pack_map, unpack_map
from convpeft.deployment.patching import patch_network
from convpeft.errors import ConvpeftError

DOMAIN = "convpeft.map"


def base(model: nn.Module) -> bytes:
    """The readers' network of a convolution, a norm and a head."""
    tensors = {key: value.detach().numpy() for key, value in model.state_dict().items() if "tracked" not in key}
    norm = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *norm], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "3.weight", "3.bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "base",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 1, 3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 2))],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def _reshape(given: str, made: str, *shape: int) -> list[NodeProto]:
    value = numpy_helper.from_array(np.array(shape, np.int64))
    return [
        helper.make_node("Constant", [], [f"{made} shape"], value=value),
        helper.make_node("Reshape", [given, f"{made} shape"], [made]),
    ]


def map_of(config: bytes) -> bytes:
    """The map of the readers' adapter: a low-rank update, and everything else as it is stored."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    update = [*_reshape("i0", "matrix", 2, 9), helper.make_node("Gemm", ["i1", "i2", "matrix"], ["new"])]
    functions = [
        helper.make_function(
            DOMAIN, "map1", ["i0", "i1", "i2"], ["o"], [*update, *_reshape("new", "o", 2, 1, 3, 3)], opsets[:1]
        ),
        helper.make_function(DOMAIN, "map2", ["i0"], ["o"], [helper.make_node("Identity", ["i0"], ["o"])], opsets[:1]),
    ]
    copied = {"1.running_mean": "1:norm.running_mean", "1.running_var": "1:norm.running_var"}
    copied |= {"3.weight": "3:head.weight", "3.bias": "3:head.bias"}
    first = ["0.weight", "0:lora.up", "0:lora.down"]
    calls = [helper.make_node("map1", first, ["new 0.weight"], domain=DOMAIN)]
    calls += [helper.make_node("map2", [old], [f"new {key}"], domain=DOMAIN) for key, old in copied.items()]
    graph = helper.make_graph(calls, "map", [], [])
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    return pack_map(model, adapter=json.loads(config)["digest"])


def sign_map(content: bytes) -> bytes:
    """Give a changed map the digest that belongs to it, as anybody can who knows the format."""
    try:
        model: ModelProto = unpack_map(content)
        told = {each.key: each.value for each in model.metadata_props}
        del model.metadata_props[:]
        return pack_map(model, adapter=told.get("adapter", ""))
    except Exception:
        return content


def patch(folder: Path) -> object:
    """Patch as a device does; nothing is left after a refusal."""
    out = folder / "patched.onnx"
    out.unlink(missing_ok=True)
    try:
        patch_network(folder / "base.onnx", folder / "adapter", out)
    except ConvpeftError:
        assert not out.exists(), "a refused patch was written"
        raise
    kept = onnx.load(str(out))
    config = json.loads((folder / "adapter" / CONFIG).read_bytes())
    return config["digest"], {each.name: each.raw_data.hex() for each in kept.graph.initializer}
