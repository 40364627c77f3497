"""A patched network is the one that merging gives, whatever the method; a wrong base, adapter or map is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import MAPS
from convpeft.adapter_description import CONFIG, MAP, WEIGHTS, description_digest
from convpeft.adapter_file import read_adapter
from convpeft.deployment.map_file import pack_map, unpack_map
from convpeft.deployment.onnx_merged import export_onnx
from convpeft.deployment.patch_map import write_patch_map
from convpeft.deployment.patching import patch_network
from convpeft.errors import AdapterFileError, ModelError, OptionError, RunError
from convpeft.evaluation.inference import Classifier
from deployment.patched_networks import network, run_onnx, save_adapter, write_base
from deployment_samples import PREPROCESSING

TOLERANCE = 1e-4  # of logits near 1: onnxruntime and PyTorch sum in other orders
MOST_BEYOND = 64 * 2**10  # bytes of a patch that are not the adapter's
X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))

# What a default leaves out: a bias or none, several stages of one map, more than one method, norms that move.
MORE = {
    "bitfit that makes biases": ("bitfit", {"create": True}),
    "lora from pissa, scaled": ("lora", {"init": "pissa", "learned_scale": True, "alpha": 3.0, "norm": "train"}),
    "lora with moved statistics": ("lora", {"norm": "adapt", "num_classes": 3}),
    "fresh head under tsa": ("tsa", {"num_classes": 3, "form": "channel"}),
    "two methods": ("lora+bitfit", {"num_classes": 7}),
    "colora that merges": ("colora", {"merge_every": "epoch", "order": "depthwise-first"}),
    "lora beside whole layers": ("lora", {"include": ["layer2"], "also_train": ["head", "norm"]}),
    "fsf that expands": ("fsf", {"expansion": 2}),
    "lokr of two low ranks": ("lokr", {"rank": 1, "decompose_both": True, "alpha": 2.0}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(network(), tmp_path_factory.mktemp("base") / "base.onnx", X[:2])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter of three other classes with moved statistics, and its map."""
    made = save_adapter(network(), tmp_path_factory.mktemp("lora") / "adapter", "lora", norm="adapt", num_classes=3)
    write_patch_map(made, network())
    return made


def full_export(adapter: Path, path: Path) -> np.ndarray:
    """What the file that `convpeft export` makes of the same adapter answers."""
    model = convpeft.load(network(), adapter).eval()
    classes = tuple(map(str, range(model(X).shape[1])))
    export_onnx(Classifier(model, PREPROCESSING, classes), path, images=X)
    return run_onnx(path, X)


def merged_answers(adapter: Path) -> np.ndarray:
    model = convpeft.merge(convpeft.load(network(), adapter))
    with torch.no_grad():
        return model(X).numpy()


def sizes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_size for each in folder.iterdir()}


@pytest.mark.parametrize("case", [*MAPS, *MORE])
def test_patched_network_answers_as_the_merged_one(case: str, base: Path, tmp_path: Path) -> None:
    method, options = MORE.get(case, (case, {}))
    adapter = save_adapter(network(), tmp_path / "adapter", method, **options)
    before = sum(sizes(adapter).values())
    write_patch_map(adapter, network())
    assert sum(sizes(adapter).values()) <= before + MOST_BEYOND
    out = tmp_path / "patched.onnx"
    patch_network(base, adapter, out)
    onnx.checker.check_model(str(out), full_check=True)
    expected = merged_answers(adapter)
    assert np.abs(run_onnx(out, X) - expected).max() <= TOLERANCE
    assert np.abs(run_onnx(out, X[:1]) - expected[:1]).max() <= TOLERANCE
    assert np.abs(run_onnx(out, X) - full_export(adapter, tmp_path / "full.onnx")).max() <= TOLERANCE
    if expected.shape[1] == 5:
        assert np.abs(run_onnx(base, X) - expected).max() > 10 * TOLERANCE, "the adapter says nothing"


class Odd(nn.Module):
    """Transposed, one-dimensional and shared layers, a weight that the forward changes, and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False)
        self.line = nn.Conv1d(6, 6, 3, bias=False)
        self.token = nn.Linear(6, 6, bias=False)
        self.gamma = nn.Parameter(torch.ones(6))
        self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.conv(x))).flatten(2)
        x = self.line(torch.relu(self.line(x))).transpose(1, 2)  # (batch, places, channels)
        return self.fc(self.norm(torch.tanh(self.token(x)) * self.gamma).mean(1))


def odd() -> nn.Module:
    torch.manual_seed(4)
    return Odd().eval()


@pytest.mark.parametrize(
    ("method", "options"), [("lora", {}), ("full", {}), ("ssf", {}), ("bitfit", {"create": True}), ("dora", {})]
)
def test_odd_layers_are_patched(method: str, options: dict, tmp_path: Path) -> None:
    x = X[:, :, :5, :5]
    base = write_base(odd(), tmp_path / "base.onnx", x[:2])
    adapter = save_adapter(odd(), tmp_path / "adapter", method, **options)
    write_patch_map(adapter, odd())
    out = tmp_path / "patched.onnx"
    patch_network(base, adapter, out)
    with torch.no_grad():
        expected = convpeft.merge(convpeft.load(odd(), adapter))(x).numpy()
    assert np.abs(run_onnx(out, x) - expected).max() <= TOLERANCE
    assert np.abs(run_onnx(base, x) - expected).max() > 10 * TOLERANCE


def test_patched_network_says_what_it_is(base: Path, tmp_path: Path) -> None:
    model = convpeft.attach(network(), "probe", num_classes=3)
    adapter = convpeft.save(model, tmp_path / "adapter", classes=["cat", "dog", "hägg"])
    write_patch_map(adapter, network())
    patch_network(base, adapter, tmp_path / "patched.onnx")
    told = {each.key: each.value for each in onnx.load(str(tmp_path / "patched.onnx")).metadata_props}
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    assert json.loads(told["convpeft.classes"]) == ["cat", "dog", "hägg"]
    assert told["convpeft.adapter"] == config["digest"]
    assert told["convpeft.fingerprint"] == config["base"]["fingerprint"]


def test_output_of_a_patched_network_has_the_new_classes(base: Path, adapter: Path, tmp_path: Path) -> None:
    patch_network(base, adapter, tmp_path / "patched.onnx")
    (output,) = onnx.load(str(tmp_path / "patched.onnx")).graph.output
    first, second = output.type.tensor_type.shape.dim
    assert first.dim_param
    assert second.dim_value == 3


def test_map_holds_no_tensor_of_base_or_adapter(adapter: Path) -> None:
    content = unpack_map((adapter / MAP).read_bytes()).SerializeToString()
    file = read_adapter(adapter)
    for value in [*file.tensors.values(), *network().state_dict().values()]:
        if value.numel() >= 4 and value.is_floating_point():
            assert value.flatten()[:4].numpy().tobytes() not in content


@pytest.mark.parametrize("tensor", ["layer1.conv1.weight", "layer2.norm2.running_var", "fc.bias"])
def test_base_that_differs_in_one_last_place_is_refused(tensor: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    other = onnx.load(str(base))
    (initializer,) = [each for each in other.graph.initializer if each.name == tensor]
    changed = numpy_helper.to_array(initializer).copy()
    changed.flat[1] = np.nextafter(changed.flat[1], np.float32(9))
    initializer.CopyFrom(numpy_helper.from_array(changed, tensor))
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(AdapterFileError, match=f"is not the base that the adapter was made for: it has .* '{tensor}'"):
        patch_network(tmp_path / "other.onnx", adapter, tmp_path / "patched.onnx")
    assert not (tmp_path / "patched.onnx").exists()


def test_base_without_a_tensor_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = onnx.load(str(base))
    for each in other.graph.initializer:
        if each.name == "fc.weight":
            each.name = "x"
    for node in other.graph.node:
        for number, name in enumerate(node.input):
            if name == "fc.weight":
                node.input[number] = "x"
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(AdapterFileError, match=r"it lacks tensor 'fc\.weight'"):
        patch_network(tmp_path / "other.onnx", adapter, tmp_path / "patched.onnx")


def test_fingerprint_of_the_whole_base_counts(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The short digests agree here, the long one does not."""
    copy = resigned(adapter, tmp_path, lambda config: config["base"].update(fingerprint="0" * 64))
    with pytest.raises(AdapterFileError, match=r"fingerprint \w+, expected 0000000000000000"):
        patch_network(base, copy, tmp_path / "patched.onnx")


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08"])
def test_base_that_is_no_network_is_refused(content: bytes, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "base.onnx").write_bytes(content)
    with pytest.raises(RunError, match="is no readable network"):
        patch_network(tmp_path / "base.onnx", adapter, tmp_path / "patched.onnx")


def test_base_in_two_files_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(str(base)), str(tmp_path / "two.onnx"), save_as_external_data=True, size_threshold=0)
    with pytest.raises(RunError, match="lies in another file, expected one file"):
        patch_network(tmp_path / "two.onnx", adapter, tmp_path / "patched.onnx")


def test_map_of_another_adapter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = save_adapter(network(), tmp_path / "other", "lora", rank=2)
    shutil.copy(adapter / MAP, other / MAP)
    with pytest.raises(AdapterFileError, match="is the map of another adapter"):
        patch_network(base, other, tmp_path / "patched.onnx")


def test_truncated_map_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    content = (adapter / MAP).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (copy / MAP).write_bytes(content[:length])
        with pytest.raises(AdapterFileError, match="is no readable map"):
            patch_network(base, copy, tmp_path / "patched.onnx")
    assert not (tmp_path / "patched.onnx").exists()


def test_saving_over_an_adapter_drops_its_map(tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", "bitfit")
    assert write_patch_map(adapter, network()).name in sizes(adapter)
    assert sizes(save_adapter(network(), adapter, "lora")).keys() == {CONFIG, WEIGHTS}


def test_adapter_with_a_map_loads_as_before(adapter: Path) -> None:
    assert convpeft.load(network(), adapter)(X).shape == (5, 3)


def test_missing_map_is_made_where_torch_is(base: Path, tmp_path: Path) -> None:
    model = convpeft.load_model("small-cnn", pretrained=False).eval()
    x = torch.randn(2, 1, 28, 28)
    file = write_base(model, tmp_path / "base.onnx", x)
    adapter = save_adapter(model, tmp_path / "adapter", "lora")
    patch_network(file, adapter, tmp_path / "patched.onnx")
    with torch.no_grad():
        assert np.abs(run_onnx(tmp_path / "patched.onnx", x) - model(x).numpy()).max() <= TOLERANCE
    assert sizes(adapter).keys() == {CONFIG, WEIGHTS}


def test_file_that_is_there_is_kept(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "patched.onnx").write_text("mine")
    with pytest.raises(OptionError, match="exists already, so it is not patched over"):
        patch_network(base, adapter, tmp_path / "patched.onnx")
    assert (tmp_path / "patched.onnx").read_text() == "mine"
    with pytest.raises(OptionError, match=r"a name that ends in \.onnx"):
        patch_network(base, adapter, tmp_path / "patched.bin")


def test_place_that_cannot_be_written_is_told(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="the network cannot be written"):
        patch_network(base, adapter, tmp_path / "file" / "patched.onnx")


@pytest.mark.parametrize("method", ["conv-adapter", "lite-residual"])
def test_branch_cannot_be_patched_in(method: str, tmp_path: Path) -> None:
    adapter = save_adapter(network(), tmp_path / "adapter", method)
    with pytest.raises(ModelError, match=r"is no map of weights and cannot be patched in|which no patch can change"):
        write_patch_map(adapter, network())
    assert MAP not in sizes(adapter)


def test_adapter_on_top_of_another_cannot_be_patched_in(base: Path, tmp_path: Path) -> None:
    model = convpeft.attach(network(), "lora", name="first")
    convpeft.attach(model, "bitfit", name="second")
    adapter = convpeft.save(model, tmp_path / "adapter", name="second")
    with pytest.raises(AdapterFileError, match="was trained on top of other adapters, so it patches no base"):
        write_patch_map(adapter, network())
    with pytest.raises(AdapterFileError, match="was trained on top of other adapters, so it patches no base"):
        patch_network(base, adapter, tmp_path / "patched.onnx")


def resigned(adapter: Path, tmp_path: Path, change) -> Path:
    """A copy of an adapter whose description was changed and signed anew, and its map with it."""
    copy = shutil.copytree(adapter, tmp_path / "resigned")
    config = json.loads((copy / CONFIG).read_text(encoding="utf-8"))
    change(config)
    config["digest"] = description_digest(config)
    (copy / CONFIG).write_text(json.dumps(config))
    model = unpack_map((copy / MAP).read_bytes())
    (copy / MAP).write_bytes(pack_map(model, adapter=config["digest"]))
    return copy
