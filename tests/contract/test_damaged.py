"""C08: a damaged adapter file is refused, whatever was done to it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convpeft
from contract.methods_under_test import FEWER
from contract.saved_networks import network, trained
from convpeft.adapter_file import description_digest
from convpeft.fingerprints import tensor_digest

pytestmark = [pytest.mark.contract, pytest.mark.promise("C08")]
SHARED_FOLDER = settings(FEWER, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def files_of(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config, load_file(folder / "adapter_model.safetensors")


def rewrite(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    """Write both files again, the description signed anew, as somebody who knows the format would."""
    config = config | {"digest": description_digest(config)}
    config = config | {"digest": description_digest(config)}  # so that the checks behind it are reached
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter with low-rank factors, a head, own norms and statistics."""
    return convpeft.save(trained("lora", "train", 6), tmp_path_factory.mktemp("pristine") / "adapter")


@pytest.fixture
def victim(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "adapter"))


def refused(folder: Path) -> str:
    model = network()
    keys = list(model.state_dict())
    with pytest.raises(convpeft.AdapterFileError) as refusal:
        convpeft.load(model, folder)
    assert list(model.state_dict()) == keys
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.promise("C08")
def test_pristine_file_loads(victim: Path) -> None:
    convpeft.load(network(), victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize("told", [False, True], ids=["behind its back", "in the description too"])
def test_each_tensor_deleted_is_refused(victim: Path, told: bool) -> None:
    config, tensors = files_of(victim)
    for key in tensors:
        fewer = {k: v for k, v in tensors.items() if k != key}
        digests = {k: v for k, v in config["tensors"].items() if k != key or not told}
        rewrite(victim, config | {"tensors": digests}, fewer)
        said = refused(victim)
        assert repr(key) in said
        if not told:
            assert f"lacks tensor {key!r}. Get the file again." in said
        elif key != "9:head.weight":  # that one tells the number of classes, which is looked at before
            assert f"tensor {key!r} is missing. Get the file again." in said


@pytest.mark.promise("C08")
@pytest.mark.parametrize("told", [False, True], ids=["behind its back", "in the description too"])
def test_each_tensor_renamed_is_refused(victim: Path, told: bool) -> None:
    config, tensors = files_of(victim)
    for key in tensors:
        renamed = {k + "x" * (k == key): v for k, v in tensors.items()}
        digests = {k + "x" * (k == key and told): v for k, v in config["tensors"].items()}
        rewrite(victim, config | {"tensors": digests}, renamed)
        assert key in refused(victim)


@pytest.mark.promise("C08")
def test_each_tensor_transposed_is_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    matrices = [key for key, value in tensors.items() if value.ndim > 1]
    assert any(tensors[key].shape[0] == tensors[key].shape[1] for key in matrices)  # a square one among them
    for key in matrices:
        rewrite(victim, config, tensors | {key: tensors[key].transpose(0, 1)})
        assert repr(key) in refused(victim)


@pytest.mark.promise("C08")
def test_each_tensor_of_another_shape_or_type_is_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    for key, value in tensors.items():
        for altered in (value.unsqueeze(0), value.to(torch.int32) if value.is_floating_point() else value.float()):
            digests = config["tensors"] | {key: tensor_digest(altered)}
            rewrite(victim, config | {"tensors": digests}, tensors | {key: altered})
            said = refused(victim)
            head = key == "9:head.weight"  # it tells the number of classes, which is looked at before
            assert key in said
            assert head or f"expected shape {tuple(value.shape)}, got {tuple(altered.shape)}. Get the file" in said


@pytest.mark.promise("C08")
def test_each_tensor_duplicated_under_another_name_is_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    for key, value in tensors.items():
        rewrite(victim, config, tensors | {f"{key}.copy": value.clone()})
        assert f"{key}.copy" in refused(victim)
        digests = config["tensors"] | {f"{key}.copy": tensor_digest(value)}
        rewrite(victim, config | {"tensors": digests}, tensors | {f"{key}.copy": value.clone()})
        assert f"{key}.copy' belongs to no layer or to two. Get the file again." in refused(victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_each_tensor_that_is_not_finite_is_refused(victim: Path, value: float) -> None:
    config, tensors = files_of(victim)
    for key, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = tensor.clone()
            bad.view(-1)[0] = value
            digests = config["tensors"] | {key: tensor_digest(bad)}
            rewrite(victim, config | {"tensors": digests}, tensors | {key: bad})
            assert "holds NaN or infinity. Train the adapter again." in refused(victim)


@pytest.mark.promise("C08")
def test_each_changed_digest_is_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    for key, digest in config["tensors"].items():
        other = ("0" if digest[0] != "0" else "1") + digest[1:]
        rewrite(victim, config | {"tensors": config["tensors"] | {key: other}}, tensors)
        assert repr(key) in refused(victim)


@pytest.mark.promise("C08")
def test_each_tensor_changed_by_one_bit_is_refused(victim: Path) -> None:
    file = victim / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for position in range(start, len(data), 97):
        flipped = bytearray(data)
        flipped[position] ^= 1
        file.write_bytes(flipped)
        refused(victim)


@pytest.mark.promise("C08")
def test_each_byte_of_the_description_changed_is_refused(victim: Path) -> None:
    file = victim / "adapter_config.json"
    text = file.read_bytes()
    for position in range(0, len(text), 23):
        file.write_bytes(text[:position] + bytes([text[position] ^ 1]) + text[position + 1 :])
        refused(victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize("name", ["float8_e4m3fn", "complex64", "int8"])
def test_tensor_of_a_type_that_no_adapter_has_is_refused(victim: Path, name: str) -> None:
    config, tensors = files_of(victim)
    key, value = next((key, value) for key, value in tensors.items() if value.ndim > 1)
    altered = value.to(getattr(torch, name))
    rewrite(victim, config | {"tensors": config["tensors"] | {key: tensor_digest(altered)}}, tensors | {key: altered})
    assert "as no adapter does" in refused(victim)


def test_more_classes_than_the_head_has_are_refused_before_room_is_made(victim: Path) -> None:
    config, tensors = files_of(victim)
    rewrite(victim, config | {"num_classes": 10**9, "classes": None}, tensors)
    assert "tells of 1000000000 classes, but '9:head.weight' is no head of as many" in refused(victim)


def test_head_under_another_name_is_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    parts = [part | {"part": "head@weight"} if part["part"] == "head" else part for part in config["parts"]]
    rewrite(victim, config | {"parts": parts}, tensors)
    assert "holds a part 'head@weight'" in refused(victim)


def changed_part(victim: Path, **fields: object) -> str:
    """What is said about the file after the first part with a weight of its own was described otherwise."""
    config, tensors = files_of(victim)
    first = next(part for part in config["parts"] if part["part"] == "lora")
    old, new = (f"{each['path']}:{each['part']}." for each in (first, first | fields))
    parts = [part | fields if part is first else part for part in config["parts"]]
    digests = {key.replace(old, new): value for key, value in config["tensors"].items()}
    tensors = {key.replace(old, new): value for key, value in tensors.items()}
    rewrite(victim, config | {"parts": parts, "tensors": digests}, tensors)
    return refused(victim)


def test_part_of_no_known_kind_is_refused(victim: Path) -> None:
    assert "part 'new-kind' at '0' is of no known kind. Upgrade convpeft." in changed_part(victim, part="new-kind")


def test_part_of_a_layer_of_another_shape_is_refused(victim: Path) -> None:
    said = changed_part(victim, shape=[1, 2, 3, 4])
    assert "made for another layer '0' (" in said
    assert "shape [1, 2, 3, 4]. Load the right base." in said


def test_part_of_a_layer_that_the_model_lacks_is_refused(victim: Path) -> None:
    said = changed_part(victim, path="nowhere")
    assert "the model has no layer 'nowhere' that an adapter could sit on. Load the right base." in said


def test_named_pipe_in_place_of_the_tensors_is_refused(victim: Path) -> None:
    (victim / "adapter_model.safetensors").unlink()
    os.mkfifo(victim / "adapter_model.safetensors")
    assert "there is no such file" in refused(victim)


def test_two_tensors_swapped_are_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    first, second = "1:norm.running_mean", "1:norm.running_var"
    rewrite(victim, config, tensors | {first: tensors[second], second: tensors[first]})
    refused(victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_missing_file_is_refused(victim: Path, missing: str) -> None:
    (victim / missing).unlink()
    refused(victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_file_is_refused(victim: Path, file: str, content: bytes) -> None:
    (victim / file).write_bytes(content)
    said = "is not a readable description (" if file.endswith(".json") else "cannot be read ("
    assert said in refused(victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "other"),
        ("format_version", 999),
        ("format_version", None),
        ("method", "no-such-method"),
        ("method", None),
        ("options", {"rank": "8"}),
        ("options", {"rnak": 8}),
        ("options", {"rank": -1}),
        ("options", []),
        ("norm", None),
        ("norm", "no-such-policy"),
        ("num_classes", -3),
        ("num_classes", 10**12),
        ("num_classes", "4"),
        ("num_classes", 5),
        ("classes", [*"abcde", "\x1b[2J"]),
        ("classes", [1, 2]),
        ("classes", ["only one"]),
        ("parts", {}),
        ("parts", [{}]),
        ("parts", []),
        ("parts", [{"path": "no.such", "part": "lora"}]),
        ("parts", [{"path": "0", "part": "lora", "shape": "x"}]),
        ("base", {}),
        ("base", {"fingerprint": "0", "tensors": {}}),
        ("tensors", []),
        ("versions", None),
    ],
)
def test_description_with_a_wrong_field_is_refused(victim: Path, field: str, value: object) -> None:
    config, tensors = files_of(victim)
    rewrite(victim, config | {field: value}, tensors)
    refused(victim)


@pytest.mark.promise("C08")
@pytest.mark.parametrize(
    "field",
    ["format", "format_version", "method", "options", "norm", "num_classes", "classes", "parts", "base", "tensors"],
)
def test_description_without_a_field_is_refused(victim: Path, field: str) -> None:
    config, tensors = files_of(victim)
    del config[field]
    rewrite(victim, config, tensors)
    refused(victim)


@pytest.mark.promise("C08")
def test_each_part_moved_to_another_layer_or_dropped_is_refused(victim: Path) -> None:
    config, tensors = files_of(victim)
    for index, part in enumerate(config["parts"]):
        others = config["parts"][:index] + config["parts"][index + 1 :]
        rewrite(victim, config | {"parts": others}, tensors)
        refused(victim)
        for path in ("9", "4", "2", "", "0.convpeft", "../x", "\n"):
            if path != part["path"]:
                rewrite(victim, config | {"parts": [*others, part | {"path": path}]}, tensors)
                refused(victim)
        rewrite(victim, config | {"parts": [*others, part, part]}, tensors)
        refused(victim)


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of everything inside a description, containers included."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += leaves(inner, (*path, key))
    return found


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("0:lora.up"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.promise("C08")
@SHARED_FOLDER
@given(data=st.data())
def test_any_field_of_any_value_loads_or_is_refused(victim: Path, pristine: Path, data: st.DataObject) -> None:
    config, tensors = files_of(pristine)
    *parents, last = data.draw(st.sampled_from(leaves(config)))
    target: Any = config
    for key in parents:
        target = target[key]
    target[last] = data.draw(ANYTHING)
    rewrite(victim, config, tensors)
    model = network()
    try:
        convpeft.load(model, victim)
    except convpeft.AdapterFileError as error:
        assert "\n" not in str(error)
        assert type(model[0]) is nn.Conv2d
    else:
        assert torch.isfinite(model.eval()(torch.randn(2, 3, 16, 16))).all()
