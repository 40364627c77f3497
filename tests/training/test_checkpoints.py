"""A checkpoint is written whole, found again after damage, and never needs pickle."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import convpeft
from convpeft.errors import RunError
from convpeft.training.checkpoints import (
    Checkpoint,
    adapter_tensors,
    capture,
    read_checkpoint,
    reinstate,
    restore_adapter,
    write_checkpoint,
)
from convpeft.training.course import Course
from convpeft.training.engine import Engine
from convpeft.training.history import Position
from convpeft.training.recipe import TrainSection
from tiny import perceptron


def adapted(**options) -> nn.Module:
    torch.manual_seed(0)
    return convpeft.attach(perceptron(), "lora", rank=1, include=["linear"], exclude=[], **options)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in convpeft.trainable_parameters(model):
            parameter.normal_(generator=generator)
    return model


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(convpeft.param_groups(model), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


def checkpoint_of(number: int) -> Checkpoint:
    return Checkpoint({"adapter/x": torch.full((3,), float(number))}, {"history": [], "number": number})


def test_checkpoint_is_read_back_as_it_was_written(tmp_path):
    write_checkpoint(checkpoint_of(1), tmp_path / "last")
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert torch.equal(found.tensors["adapter/x"], torch.ones(3))
    assert found.facts["number"] == 1


def test_no_checkpoint_is_none(tmp_path):
    assert read_checkpoint(tmp_path / "last") is None


def test_checkpoint_before_is_kept(tmp_path):
    for number in (1, 2, 3):
        write_checkpoint(checkpoint_of(number), tmp_path / "last")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "last.previous"]
    assert json.loads((tmp_path / "last.previous" / "state.json").read_text())["number"] == 2


@pytest.mark.promise("F05")
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, name, damage):
    for number in (1, 2):
        write_checkpoint(checkpoint_of(number), tmp_path / "last")
    file = tmp_path / "last" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 0x10
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[:-4]), "empty": b"", "remove": b""}[damage])
    if damage == "remove":
        file.unlink()
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert found.facts["number"] == 1


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"digest": 3}', b"{}", b"\xff", b"[" * 100_000])
def test_description_of_another_form_counts_as_damage(tmp_path, content):
    write_checkpoint(checkpoint_of(1), tmp_path / "last")
    (tmp_path / "last" / "state.json").write_bytes(content)
    with pytest.raises(RunError, match="neither the checkpoint nor the previous one is whole"):
        read_checkpoint(tmp_path / "last")


@pytest.mark.promise("F05")
def test_every_flipped_byte_is_found(tmp_path):
    write_checkpoint(checkpoint_of(1), tmp_path / "last")
    for name in ("state.safetensors", "state.json"):
        file = tmp_path / "last" / name
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(RunError):
                read_checkpoint(tmp_path / "last")
        file.write_bytes(whole)


@pytest.mark.promise("F04")
def test_interrupted_write_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    write_checkpoint(checkpoint_of(1), tmp_path / "last")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convpeft.training.checkpoints.save_file", fail)
    with pytest.raises(RunError, match=r"last: cannot write the checkpoint \(.*No space left on device\)"):
        write_checkpoint(checkpoint_of(2), tmp_path / "last")
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert found.facts["number"] == 1


@pytest.mark.promise("F02")
def test_checkpoint_between_two_renames_is_found(tmp_path):
    """The moment of a kill at which `last` has been moved aside and the new one is not there yet."""
    write_checkpoint(checkpoint_of(1), tmp_path / "last")
    (tmp_path / "last").rename(tmp_path / "last.previous")
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert found.facts["number"] == 1


@pytest.mark.promise("F02")
def test_next_write_after_a_kill_between_two_renames_never_leaves_none(tmp_path, monkeypatch):
    write_checkpoint(checkpoint_of(1), tmp_path / "last")
    (tmp_path / "last").rename(tmp_path / "last.previous")
    write_checkpoint(checkpoint_of(2), tmp_path / "last")
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert found.facts["number"] == 2


def test_checkpoint_holds_no_pickle(tmp_path):
    model = adapted()
    write_checkpoint(capture(model, stepped(model), {"history": []}), tmp_path / "last")
    for file in (tmp_path / "last").iterdir():
        head = file.read_bytes()
        assert not head.startswith((b"PK", b"\x80"))
    assert sorted(file.name for file in (tmp_path / "last").iterdir()) == ["state.json", "state.safetensors"]


def test_reading_uses_no_pickle(tmp_path, monkeypatch):
    model = adapted()
    write_checkpoint(capture(model, stepped(model), {"history": []}), tmp_path / "last")

    def fail(*_, **__):
        raise AssertionError("pickle was used")

    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)
    monkeypatch.setattr("torch.load", fail)
    assert read_checkpoint(tmp_path / "last") is not None


@pytest.mark.parametrize("kind", ["adamw", "sgd", "sgd without momentum"])
def test_state_put_back_gives_the_next_step_bit_for_bit(tmp_path, kind):
    def make(model: nn.Module) -> torch.optim.Optimizer:
        groups = convpeft.param_groups(model)
        if kind == "adamw":
            return torch.optim.AdamW(groups, lr=0.1)
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9 if kind == "sgd" else 0.0)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()

    one = randomised(adapted(), 1)
    optimizer = make(one)
    for _ in range(3):
        step(one, optimizer)
    write_checkpoint(capture(one, optimizer, {"history": []}), tmp_path / "last")
    step(one, optimizer)

    other = randomised(adapted(), 2)
    torch.manual_seed(99)
    resumed = make(other)
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    reinstate(found, other, resumed)
    step(other, resumed)
    for key, value in adapter_tensors(one).items():
        assert torch.equal(adapter_tensors(other)[key], value)


def test_checkpoint_of_other_layers_is_refused():
    with pytest.raises(RunError, match="made with other layers"):
        restore_adapter(adapted(), {"0:default/lora.up": torch.zeros(1)})


def test_checkpoint_of_another_rank_is_refused():
    wide = convpeft.attach(perceptron(), "lora", rank=2, include=["linear"], exclude=[])
    narrow = adapted()
    with pytest.raises(RunError, match="made with other layers"):
        restore_adapter(narrow, adapter_tensors(wide))


@pytest.mark.parametrize("state", [{}, {"momentum": 3}, {"optimizer": "none"}], ids=str)
def test_checkpoint_that_lacks_the_state_of_the_optimiser_is_refused_in_one_line(tmp_path, state):
    model = adapted()
    written = capture(model, stepped(model), {"history": []})
    facts = {key: value for key, value in written.facts.items() if key in ("history",)} | state
    with pytest.raises(RunError, match=r"^the checkpoint does not fit the run \(.*\)\. Start the run anew\.$"):
        reinstate(Checkpoint(written.tensors, facts), model, stepped(model))


def test_restoring_keeps_the_parameters_that_the_optimiser_holds():
    model = randomised(adapted(), 1)
    before = convpeft.trainable_parameters(model)
    restore_adapter(model, {key: torch.zeros_like(value) for key, value in adapter_tensors(model).items()})
    assert all(one is other for one, other in zip(before, convpeft.trainable_parameters(model), strict=True))
    assert all(not parameter.any() for parameter in before)


@pytest.mark.promise("S02")
@pytest.mark.parametrize(
    "facts",
    [{"places": None}, {"places": [[1.0]]}, {"history": [{"nothing": 1}]}, {"position": 3}, {"position": {"epoch": 1}}],
    ids=str,
)
def test_checkpoint_whose_facts_are_not_those_of_a_run_is_refused_in_one_line(tmp_path, facts):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    convpeft.attach(model, "probe", num_classes=2)
    batches = SimpleNamespace(loader=torch.utils.data.DataLoader([(torch.zeros(4), 0, 0)]))
    engine = Engine(model, batches, TrainSection(), None)
    try:
        course = Course(model, engine, tmp_path / "last", save_every=1e9)
        course.keep(Position(1, 1))
        found = read_checkpoint(tmp_path / "last")
        write_checkpoint(Checkpoint(found.tensors, found.facts | facts), tmp_path / "last")
        with pytest.raises(RunError, match="is not of this run") as refusal:
            Course(model, engine, tmp_path / "last", save_every=1e9).resume()
        assert str(refusal.value).isprintable()
    finally:
        engine.close()
