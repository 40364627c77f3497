"""Fingerprints: equal bits give equal digests, anything else does not."""

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import convpeft
from convpeft.fingerprints import base_tensors, fingerprint, tensor_digest
from measuring import counted


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


def test_digest_is_sha256_of_type_shape_and_values() -> None:
    tensor = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b"torch.float32(1, 2)" + tensor.numpy().tobytes()).hexdigest()
    assert tensor_digest(tensor) == expected


def test_digest_ignores_memory_layout() -> None:
    tensor = torch.randn(2, 3, 4, 5)
    digest = tensor_digest(tensor)
    assert tensor_digest(tensor.to(memory_format=torch.channels_last)) == digest
    assert tensor_digest(tensor.transpose(0, 1).contiguous().transpose(0, 1)) == digest
    assert tensor_digest(torch.nn.Parameter(tensor)) == digest


def test_digest_ignores_the_layout_of_a_matrix() -> None:
    matrix = torch.randn(3, 4)
    assert tensor_digest(matrix.T.contiguous().T) == tensor_digest(matrix)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(4),
        torch.zeros(2, 2, 1),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(2, 2, dtype=torch.int32),
        torch.tensor([[0.0, 0.0], [0.0, -0.0]]),
        torch.tensor([[0.0, 0.0], [0.0, 1e-45]]),
    ],
)
def test_digest_tells_shapes_types_and_bits_apart(other: torch.Tensor) -> None:
    assert tensor_digest(other) != tensor_digest(torch.zeros(2, 2))


@pytest.mark.parametrize(
    "tensor", [torch.tensor(1.0), torch.zeros(0, 3), torch.tensor([True]), torch.ones(3).bfloat16()]
)
def test_digest_takes_any_tensor(tensor: torch.Tensor) -> None:
    assert len(tensor_digest(tensor)) == 64


def test_fingerprint_holds_parameters_and_statistics_but_no_counter() -> None:
    names = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"}
    assert set(base_tensors(network())) == names
    assert set(fingerprint(network())[1]) == names


def test_fingerprint_ignores_adapters() -> None:
    model = network()
    before = fingerprint(model)
    convpeft.attach(model, "full", norm="train", num_classes=3)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.add_(1)
    assert fingerprint(model) == before


def test_fingerprint_ignores_buffers_that_are_not_saved() -> None:
    model = network()
    before = fingerprint(model)
    model.register_buffer("cache", torch.zeros(3), persistent=False)
    assert fingerprint(model) == before


def test_fingerprint_changes_with_a_name() -> None:
    one, two = nn.Sequential(), nn.Sequential()
    layer = nn.Linear(2, 2)
    one.add_module("a", layer)
    two.add_module("b", layer)
    assert fingerprint(one)[0] != fingerprint(two)[0]


def test_fingerprint_changes_when_two_tensors_change_places() -> None:
    one = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert fingerprint(one)[0] != fingerprint(nn.Sequential(one[1], one[0]))[0]


@pytest.mark.promise("C07")
def test_fingerprint_changes_with_the_last_bit_of_every_tensor() -> None:
    model = network()
    before = fingerprint(model)[0]
    tensors = base_tensors(model)
    for name, tensor in tensors.items():
        with torch.no_grad():
            first = tensor.view(-1)[:1]
            kept = first.clone()
            first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))
            assert fingerprint(model)[0] != before, name
            first.copy_(kept)
        counted("tensors changed by one unit in the last place")
    assert fingerprint(model)[0] == before


@pytest.mark.promise("C07")
@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch", "channels_last", "deepcopy"])
def test_fingerprint_is_kept_by_another_layout_or_file(tmp_path: Path, form: str) -> None:
    model = network()
    before = fingerprint(model)
    if form == "channels_last":
        assert fingerprint(model.to(memory_format=torch.channels_last)) == before
        return
    again = copy.deepcopy(model)
    if form != "deepcopy":
        torch.nn.init.zeros_(again[0].weight)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        if form == "safetensors":
            save_file(state, tmp_path / "x.safetensors")
            state = load_file(tmp_path / "x.safetensors")
        else:
            torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=form == "torch")
            state = torch.load(tmp_path / "x.pth", weights_only=True)
        again.load_state_dict(state)
    assert fingerprint(again) == before


@pytest.mark.promise("C07")
def test_fingerprint_changes_with_the_precision() -> None:
    model = network()
    before = fingerprint(model)[0]
    assert fingerprint(model.double())[0] != before
