"""A foreign ONNX file is read whole or refused in one line, and nothing else is opened."""

import json

import numpy as np
import onnx
import pytest
import torch

from convpeft.deployment.onnx_file import load_onnx
from convpeft.deployment.onnx_wire import NotOnnx, has_outside_data
from convpeft.errors import ConvpeftError, ModelError
from safety.samples import onnx_files


def model() -> onnx.ModelProto:
    return onnx.load_from_string(onnx_files()["model"])


def refused(tmp_path, content: bytes, line: str) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ConvpeftError, match=line) as caught:
        load_onnx(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)


def test_good_file_is_read(tmp_path):
    (tmp_path / "x.onnx").write_bytes(onnx_files()["model"])
    read = load_onnx(tmp_path / "x.onnx")
    assert read.classes == ("cat", "dog")
    assert read.model(torch.ones(3, 2, 4, 4)).tolist() == [[1.0, 1.0]] * 3
    with pytest.raises(ModelError, match="cannot be run on these images"):
        read.model(torch.ones(3, 5, 4, 4))


@pytest.mark.parametrize("place", ["initializer", "node", "branch"])
def test_tensor_in_another_file_is_refused(place, tmp_path):
    made = model()
    outside = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../etc/passwd")
    node = made.graph.node.add(op_type="If", output=["y"])
    if place == "initializer":
        made.graph.initializer.append(outside)
    elif place == "node":
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(outside)
    else:
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.initializer.append(outside)
    refused(tmp_path, made.SerializeToString(), "has tensors in other files, which are never opened")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("classes", None, "tells no classes in its metadata"),
        ("classes", "[1, 2]", "its classes are no list of different names"),
        ("classes", '["a", "a"]', "its classes are no list of different names"),
        ("classes", "[" * 100_000, "its classes cannot be read"),
        ("preprocessing", json.dumps({"size": [9**9, 1]}), "preprocessing"),
        ("preprocessing", "{", "its preprocessing cannot be read"),
    ],
)
def test_bad_metadata_is_refused(key, value, line, tmp_path):
    made = model()
    kept = {each.key: each.value for each in made.metadata_props if each.key != f"convpeft.{key}"}
    onnx.helper.set_model_props(made, kept | ({} if value is None else {f"convpeft.{key}": value}))
    refused(tmp_path, made.SerializeToString(), line)


def test_base_asks_for_a_patch(tmp_path):
    made = model()
    onnx.helper.set_model_props(made, {"convpeft.kind": "base", "convpeft.preprocessing": "null"})
    refused(tmp_path, made.SerializeToString(), "is a base to be patched, which has no classes")


def test_other_files_are_refused(tmp_path):
    refused(tmp_path, b"", "is no ONNX file, or is damaged")
    refused(tmp_path, b"\x18\x00\x00\x00ORTM" + bytes(64), "is in onnxruntime's own format")
    refused(tmp_path, onnx_files()["model"][:-3], "ends too early, or is damaged")
    made = model()
    made.graph.input[0].name = "other"
    made.graph.node[0].input[0] = "other"
    refused(tmp_path, made.SerializeToString(), "expected one input 'images' and an output 'logits'")
    made.graph.node[0].op_type = "NoSuchOperator"
    refused(tmp_path, made.SerializeToString(), "onnxruntime does not take it")
    with pytest.raises(ModelError, match=r"nowhere\.onnx: cannot be read"):
        load_onnx(tmp_path / "nowhere.onnx")


def test_deep_nesting_is_refused():
    content = b""
    for _ in range(200):  # graph, node, attribute, graph, ...
        for key in (0x32, 0x2A, 0x0A):
            size, length = len(content), bytearray()
            while True:
                length.append(size & 0x7F | (0x80 if size > 0x7F else 0))
                size >>= 7
                if not size:
                    break
            content = bytes([key]) + bytes(length) + content
    with pytest.raises(NotOnnx):
        has_outside_data(b"\x3a" + content)


def test_flipped_bytes_end_in_our_own_error(tmp_path):
    rng, seed = np.random.default_rng(0), onnx_files()["model"]
    for _ in range(150):
        content = bytearray(seed)
        for place in rng.integers(0, len(seed), 3):
            content[place] = rng.integers(0, 256)
        (tmp_path / "x.onnx").write_bytes(bytes(content))
        try:
            load_onnx(tmp_path / "x.onnx")
        except ConvpeftError as error:
            assert "\n" not in str(error)
