"""What cannot travel as a map is refused where it is made, in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import convpeft
from convpeft.adapter_description import CONFIG, MAP
from convpeft.adapters import METHODS, Adapter
from convpeft.deployment import map_graph
from convpeft.deployment.map_file import unpack_map
from convpeft.deployment.patch_map import make_patch_map, write_patch_map
from convpeft.deployment.patching import patch_network
from convpeft.errors import AdapterFileError, ModelError
from deployment.patched_networks import network, run_onnx, save_adapter, write_base


@pytest.fixture
def method():
    """Register a method for one test."""
    names: list[str] = []

    def register(forward) -> str:
        class Strange(Adapter, name="strange"):
            def __init__(self, site) -> None:
                super().__init__(site)
                self.gain = nn.Parameter(torch.ones(1))
                self.register_buffer("hidden", torch.rand(site.shape) + 1, persistent=False)

            def start(self, weight, bias, generator) -> None:
                nn.init.ones_(self.gain)

            def forward(self, weight, bias):
                return forward(self, weight), bias

        names.append("strange")
        return "strange"

    yield register
    for name in names:
        METHODS.pop(name, None)


def test_tensor_that_is_not_stored_is_refused(method, tmp_path: Path) -> None:
    register = method(lambda part, weight: weight * part.gain * part.hidden)
    adapter = save_adapter(network(), tmp_path / "adapter", register, include=["conv"])
    with pytest.raises(ModelError, match="computes with a tensor that its adapter does not store"):
        write_patch_map(adapter, network())


def test_map_that_cannot_be_traced_is_refused(method, tmp_path: Path) -> None:
    register = method(lambda part, weight: weight * 2 if part.gain.sum() > 0 else weight)
    adapter = save_adapter(network(), tmp_path / "adapter", register, include=["stem"])
    with pytest.raises(ModelError, match=r"the map of strange cannot be traced \(\w+\)"):
        write_patch_map(adapter, network())


def test_exporter_that_computes_something_else_is_noticed(monkeypatch, tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "lora", include=["stem"])
    plain = map_graph._export

    def wrong(*arguments):
        program = plain(*arguments)
        for node in program.model.graph:
            if node.op_type == "Gemm":
                node.attributes["beta"] = type(node.attributes["beta"])("beta", node.attributes["beta"].type, 0.5)
        return program

    monkeypatch.setattr(map_graph, "_export", wrong)
    with pytest.raises(ModelError, match="'stem': the map's weight is not what the adapter makes of it"):
        write_patch_map(adapter, network())


def test_adapter_of_an_unknown_base_asks_for_the_model(tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "bitfit")
    with pytest.raises(AdapterFileError, match=r"records no base to trace on. Call write_patch_map\(path, model\)"):
        write_patch_map(adapter)


@pytest.mark.parametrize("classes", [3, None])
def test_base_of_other_classes_than_its_network_by_itself_is_built(classes: int | None, tmp_path: Path) -> None:
    """A weights file says how many there are, and no weights are read here."""
    weights = tmp_path / "weights.safetensors"
    save_file(convpeft.load_model("small-cnn", num_classes=7).state_dict(), weights)
    model = convpeft.load_model("small-cnn", weights=weights).eval()
    x = torch.randn(3, 1, 28, 28)
    base = write_base(model, tmp_path / "base.onnx", x)
    adapter = save_adapter(model, tmp_path / "adapter", "lora", num_classes=classes, include=["conv", "linear"])
    weights.unlink()
    write_patch_map(adapter)
    patch_network(base, adapter, tmp_path / "patched.onnx")
    with torch.no_grad():
        expected = model(x).numpy()
    assert expected.shape == (3, classes or 7)
    assert np.abs(run_onnx(tmp_path / "patched.onnx", x) - expected).max() <= 1e-4


def test_adapter_never_leads_to_an_import(tmp_path: Path) -> None:
    model = convpeft.load_model("small-cnn", pretrained=False)
    source = model.__dict__["_convpeft_source"]
    model.__dict__["_convpeft_source"] = type(source)(**(source.to_dict() | {"source": "evil:function"}))
    adapter = save_adapter(model, tmp_path / "adapter", "bitfit")
    with pytest.raises(ModelError, match=r"a file never leads to an import\. Build it and call write_patch_map"):
        write_patch_map(adapter)


def test_half_precision_of_another_kind_is_refused(tmp_path: Path) -> None:
    adapter = save_adapter(network().to(torch.bfloat16), tmp_path / "adapter", "bitfit")
    with pytest.raises(ModelError, match=r"a tensor of torch.bfloat16 has no place in a patch"):
        write_patch_map(adapter, network().to(torch.bfloat16))


def test_names_that_meet_are_refused(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1, bias=False), "a:lora": nn.Module()})
        model["a:lora"].register_parameter("up", nn.Parameter(torch.ones(2)))
        return model

    adapter = save_adapter(build(), tmp_path / "adapter", "lora", include=["a"])
    with pytest.raises(ModelError, match="of the adapter is called like one of the base"):
        write_patch_map(adapter, build())


def test_map_that_cannot_be_written_is_told(monkeypatch, tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "bitfit", include=["fc"], exclude=[])

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("convpeft.deployment.patch_map.write_file", full)
    with pytest.raises(AdapterFileError, match=r"the map cannot be written \(no space\)"):
        write_patch_map(adapter, network())


def test_equal_layers_share_a_function_and_equal_maps_their_bytes(tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "lora")
    content = make_patch_map(adapter, network())
    model = unpack_map(content)
    called = [node.op_type for node in model.graph.node]
    outputs = [node.output[0] for node in model.graph.node]
    first, second = (called[outputs.index(f"new layer{n}.conv1.weight")] for n in (1, 2))
    assert first == second
    assert len(model.functions) < len(called)
    assert make_patch_map(adapter, network()) == content


def test_weights_of_the_model_do_not_matter(tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "norm-tuning")
    other = network()
    with torch.no_grad():
        other.fc.weight.add_(1)
    assert make_patch_map(adapter, other) == make_patch_map(adapter, network())
    assert MAP not in {each.name for each in adapter.iterdir()}
    assert json.loads((adapter / CONFIG).read_text())["digest"] in str(unpack_map(make_patch_map(adapter, network())))
