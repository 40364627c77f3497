"""The numpy reader of adapters reads what torch's reader reads, and refuses what is not whole."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from convpeft.adapter_description import CONFIG, WEIGHTS, description_digest
from convpeft.adapter_file import read_adapter
from convpeft.deployment.plain_adapter import array_digest, parse_tensors, read_plain_adapter
from convpeft.errors import AdapterFileError
from convpeft.fingerprints import tensor_digest
from deployment.patched_networks import network, save_adapter

TYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(network(), tmp_path / "adapter", "mlae", norm="adapt", num_classes=3)


def test_numpy_reads_what_torch_reads(adapter: Path) -> None:
    plain, full = read_plain_adapter(adapter), read_adapter(adapter)
    assert plain.config == full.config
    assert plain.tensors.keys() == full.tensors.keys()
    assert all(np.array_equal(plain.tensors[key], value.numpy()) for key, value in full.tensors.items())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0, 4)])
def test_digest_is_that_of_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    (found,) = parse_tensors(save({"x": tensor})).values()
    assert found.dtype == tensor.numpy().dtype
    assert array_digest(found) == tensor_digest(tensor)


def packed(header: object, body: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: object = "F32", shape: object = (2,), place: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


BAD = {
    "nothing": (b"", "its header would be 0 bytes long"),
    "a header as long as the world": (struct.pack("<Q", 2**63) + b"{}", "its header would be"),
    "no list": (packed([1]), "its header is no list of tensors"),
    "a name twice": (packed(b'{"x": 1, "x": 2}'), "a name occurs twice in its header"),
    "another type": (packed({"x": entry("F8_E4M3", (8,))}), "'F8_E4M3', which patching does not read"),
    "a type that is none": (packed({"x": entry(["F32"])}), "which patching does not read"),
    "a negative size": (packed({"x": entry(shape=(-2,))}), "has no shape or no place"),
    "a size that is true": (packed({"x": entry("F64", (True,))}), "has no shape or no place"),
    "no place": (packed({"x": entry(place=(0, 8, 8))}), "has no shape or no place"),
    "an entry that is none": (packed({"x": 5}), "which patching does not read"),
    "a place behind the end": (packed({"x": entry(shape=(3,), place=(0, 12))}), "does not lie inside the file"),
    "a place of another size": (packed({"x": entry(shape=(1,))}), "does not lie inside the file"),
    "an overlap": (packed({"x": entry(), "y": entry()}), "its tensors overlap, or leave a gap"),
    "a gap": (packed({"x": entry("F32", (1,), (4, 8))}), "its tensors overlap, or leave a gap"),
    "more than it tells of": (packed({"x": entry("F32", (1,), (0, 4))}), "something follows its last tensor"),
    "a bool of two": (packed({"x": entry("BOOL", (8,))}, b"\2" * 8), "neither true nor false"),
}


@pytest.mark.parametrize("case", BAD)
def test_file_that_is_not_whole_is_refused(case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(ValueError) as refusal:
        parse_tensors(content)
    assert message in str(refusal.value)


def tensors_of(adapter: Path) -> dict[str, torch.Tensor]:
    """Copies, since what is read is the file's own memory, and the file is written anew."""
    return {key: value.clone() for key, value in read_adapter(adapter).tensors.items()}


def write(adapter: Path, tensors: dict[str, torch.Tensor], *, sign: bool) -> None:
    (adapter / WEIGHTS).write_bytes(save(tensors))
    if sign:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        config["tensors"] = {key: tensor_digest(value) for key, value in tensors.items()}
        (adapter / CONFIG).write_text(json.dumps(config | {"digest": description_digest(config)}))


def test_tensor_that_was_changed_is_refused(adapter: Path) -> None:
    tensors = tensors_of(adapter)
    key = next(iter(tensors))
    write(adapter, tensors | {key: tensors[key] + 1}, sign=False)
    with pytest.raises(AdapterFileError, match=f"tensor '{key}' is not the one that was saved"):
        read_plain_adapter(adapter)


def test_tensor_too_many_or_too_few_is_refused(adapter: Path) -> None:
    tensors = tensors_of(adapter)
    write(adapter, tensors | {"more": torch.ones(1)}, sign=False)
    with pytest.raises(AdapterFileError, match="tensor 'more' is in the file or in its description alone"):
        read_plain_adapter(adapter)
    tensors.pop("stem:mlae.up")
    write(adapter, tensors, sign=False)
    with pytest.raises(AdapterFileError, match=r"tensor 'stem:mlae\.up' is in the file or in its description alone"):
        read_plain_adapter(adapter)


def test_tensor_that_is_not_finite_is_refused(adapter: Path) -> None:
    tensors = tensors_of(adapter)
    tensors["stem:mlae.up"][0, 0] = float("nan")
    write(adapter, tensors, sign=True)
    with pytest.raises(AdapterFileError, match=r"tensor 'stem:mlae\.up' holds NaN or infinity"):
        read_plain_adapter(adapter)


def test_missing_tensors_are_told(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterFileError, match="there is no such file"):
        read_plain_adapter(adapter)
