"""A flipped bit in a checkpoint is found wherever it is, and the checkpoint before it is taken instead."""

import random

import pytest
import torch

import convpeft
from convpeft.errors import RunError
from convpeft.training.checkpoints import capture, read_checkpoint, write_checkpoint
from measuring import counted, times
from tiny import perceptron


def flip(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.promise("F05")
def test_random_flip_is_refused_and_the_checkpoint_before_is_taken(tmp_path):
    torch.manual_seed(0)
    model = convpeft.attach(perceptron(), "lora", rank=2)
    optimizer = torch.optim.AdamW(convpeft.param_groups(model), lr=0.1)
    for number in (1, 2):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        write_checkpoint(capture(model, optimizer, {"number": number}), tmp_path / "last")
    files = sorted((tmp_path / "last").iterdir())
    whole = [file.read_bytes() for file in files]
    draw, bits = random.Random(0), [8 * len(content) for content in whole]
    for _ in range(times(full=1000, reduced=100)):
        # tensors, their header and the facts alike
        which, bit = draw.choice([(0, draw.randrange(bits[0])), (1, draw.randrange(bits[1]))])
        files[which].write_bytes(flip(whole[which], bit))
        found = read_checkpoint(tmp_path / "last")
        files[which].write_bytes(whole[which])
        assert found is not None
        assert found.facts["number"] == 1, f"bit {bit} of {files[which].name}"
        assert found.damaged == tmp_path / "last"  # so that the run can say so
        counted("flips refused")
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert found.facts["number"] == 2  # undamaged, it is read


@pytest.mark.promise("F05")
def test_flips_in_both_checkpoints_leave_none(tmp_path):
    model = convpeft.attach(perceptron(), "lora", rank=2)
    optimizer = torch.optim.AdamW(convpeft.param_groups(model), lr=0.1)
    for _ in (1, 2):
        write_checkpoint(capture(model, optimizer, {}), tmp_path / "last")
    for name in ("last", "last.previous"):
        file = tmp_path / name / "state.safetensors"
        file.write_bytes(flip(file.read_bytes(), 8 * (file.stat().st_size - 1)))
    with pytest.raises(RunError, match="neither the checkpoint nor the previous one is whole"):
        read_checkpoint(tmp_path / "last")
