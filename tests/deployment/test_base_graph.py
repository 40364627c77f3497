"""A graph takes new tensors where they belong, or says that it cannot; a map that reaches further is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper
from torch import nn

import convpeft
from convpeft.adapter_description import CONFIG, MAP
from convpeft.adapter_file import read_adapter, write_adapter
from convpeft.deployment.base_graph import put_tensors
from convpeft.deployment.map_file import pack_map, unpack_map
from convpeft.deployment.patching import patch_network
from convpeft.errors import AdapterFileError, RunError
from safety import patches
from safety.readers import _patch_files, network


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A folder with a base, an adapter and its map."""
    for name, content in _patch_files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def patch(device: Path) -> np.ndarray:
    patches.patch(device)
    from deployment.patched_networks import run_onnx

    return run_onnx(device / "patched.onnx", torch.ones(3, 1, 3, 3))


def change_map(device: Path, change: Callable[[ModelProto], object]) -> None:
    path = device / "adapter" / MAP
    model = unpack_map(path.read_bytes())
    change(model)
    digest = json.loads((device / "adapter" / CONFIG).read_text())["digest"]
    path.write_bytes(pack_map(model, adapter=digest))


def change_base(device: Path, change: Callable[[ModelProto], object]) -> None:
    model = onnx.load(str(device / "base.onnx"))
    change(model)
    onnx.save(model, str(device / "base.onnx"))


def test_hand_made_map_gives_what_merging_gives(device: Path) -> None:
    model = convpeft.merge(convpeft.load(network(), device / "adapter"))
    with torch.no_grad():
        assert np.abs(patch(device) - model(torch.ones(3, 1, 3, 3)).numpy()).max() < 1e-5


def rename(model: ModelProto, name: str) -> None:
    model.graph.node[0].output[0] = f"new {name}"


@pytest.mark.parametrize("name", ["0.bias.x", "1.weights", "4.weight", "x"])
def test_map_that_reaches_further_is_refused(name: str, device: Path) -> None:
    change_map(device, lambda model: rename(model, name))
    with pytest.raises(AdapterFileError, match="which no part of the adapter acts on"):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_map_that_leaves_a_layer_out_is_refused(device: Path) -> None:
    change_map(device, lambda model: model.graph.node.pop(0))
    with pytest.raises(AdapterFileError, match="leaves out layer '0' of the adapter"):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_map_that_makes_another_shape_is_refused(device: Path) -> None:
    def swap(model: ModelProto) -> None:
        model.graph.node[1].input[0] = "0:lora.down"

    change_map(device, swap)
    with pytest.raises(AdapterFileError, match=r"makes '1.running_mean' as \(1, 9\), float32, expected \(2,\)"):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_adapter_that_overflows_is_refused(device: Path) -> None:
    file = read_adapter(device / "adapter")
    huge = {
        key: torch.full_like(value, 3e38) if ".up" in key or ".down" in key else value
        for key, value in file.tensors.items()
    }
    shutil.rmtree(device / "adapter")
    from convpeft.fingerprints import tensor_digest

    config = file.config | {"tensors": {key: tensor_digest(value) for key, value in huge.items()}}
    write_adapter(device / "adapter", config, huge)
    (device / "adapter" / MAP).write_bytes(patches.map_of((device / "adapter" / CONFIG).read_bytes()))
    with (
        pytest.raises(AdapterFileError, match=r"is not finite\. The adapter was trained to overflow"),
        np.errstate(all="ignore"),
    ):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_map_that_cannot_be_read_is_told(device: Path, monkeypatch) -> None:
    monkeypatch.setattr("convpeft.deployment.patching.LARGEST_FILE", 3)
    with pytest.raises(AdapterFileError, match="the map cannot be read"):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_bias_without_a_layer_is_refused(device: Path) -> None:
    model = onnx.load(str(device / "base.onnx"))
    with pytest.raises(RunError, match=r"the base's graph has no layer that takes the new '7\.bias'"):
        put_tensors(model, {"7.bias": np.zeros(2, np.float32)})


def resized(device: Path) -> None:
    """An adapter of three classes on the base of two."""
    shutil.rmtree(device / "adapter")
    torch.manual_seed(0)
    model = convpeft.attach(network(), "lora", rank=1, include=["conv"], num_classes=3, norm="adapt")
    convpeft.save(model, device / "adapter")
    (device / "adapter" / MAP).write_bytes(patches.map_of((device / "adapter" / CONFIG).read_bytes()))


def test_head_of_more_classes_is_put_in(device: Path) -> None:
    resized(device)
    assert patch(device).shape == (3, 3)


def test_graph_with_the_number_of_classes_behind_the_head_follows(device: Path) -> None:
    def reshape(model: ModelProto) -> None:
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Constant", [], ["shape"], value_ints=[-1, 2]))
        model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], ["y"]))

    resized(device)
    change_base(device, reshape)
    assert patch(device).shape == (3, 3)


def bake(operation: str, *arguments: object, **attributes: object) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Constant", [], ["two"], value_floats=[1.0, 2.0]))
        model.graph.node.append(helper.make_node(operation, ["before", *arguments], ["y"], **attributes))

    return change


def test_graph_that_does_not_fit_the_head_is_refused(device: Path) -> None:
    resized(device)
    change_base(device, bake("Mul", "two"))
    with pytest.raises(RunError, match="the base's graph does not fit the new head"):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_output_that_does_not_follow_the_head_is_refused(device: Path) -> None:
    resized(device)
    change_base(device, bake("ReduceMax", keepdims=1))
    with pytest.raises(RunError, match="does not follow its head's 3 classes"):
        patch_network(device / "base.onnx", device / "adapter", device / "patched.onnx")


def test_linear_layer_over_places_takes_a_bias(tmp_path: Path) -> None:
    from deployment.patched_networks import run_onnx, write_base

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3, bias=False)).eval(), torch.randn(2, 5, 4)
    graph = onnx.load(str(write_base(model, tmp_path / "base.onnx", x)))
    put_tensors(graph, {"0.bias": np.float32([1, 2, 3])})
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(tmp_path / "patched.onnx"))
    expected = model(x).detach().numpy() + np.float32([1, 2, 3])
    assert np.allclose(run_onnx(tmp_path / "patched.onnx", x), expected, atol=1e-6)
