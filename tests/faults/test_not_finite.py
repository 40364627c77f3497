"""NaN and infinity, wherever they come up, stop a training within a step and spoil nothing that was kept."""

import math

import pytest
import torch
from torch import nn

import convpeft
from convpeft.errors import AdapterFileError, RunError
from convpeft.training.checkpoints import adapter_tensors, read_checkpoint
from convpeft.training.history import Epoch
from convpeft.training.loop import fit
from convpeft.training.recipe import TrainSection
from measuring import counted
from tiny import Points, perceptron, separable

pytestmark = pytest.mark.promise("F06")
BATCHES = 4
BAD = [math.nan, math.inf, -math.inf]


class Poison:
    """Spoils something once, after so many batches, and counts the batches after it."""

    def __init__(self, batch: int, act) -> None:
        self.left, self.act, self.after = batch, act, 0

    def step(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()
        self.after += self.left < 0

    def epoch(self, _: Epoch) -> None:
        pass


def adapted() -> nn.Module:
    torch.manual_seed(0)
    return convpeft.attach(perceptron(), "full")


def run(model: nn.Module, path, watcher, **keys) -> None:
    train = Points(*separable(24), batch_size=6)
    settings = TrainSection(**({"epochs": 3, "lr": 0.1, "batch_size": 6} | keys))
    fit(model, train, Points(*separable(seed=1), batch_size=8), settings, checkpoints=path, watcher=watcher)


def spoil(what: str, value: float, model: nn.Module) -> None:
    parameter = convpeft.trainable_parameters(model)[0]
    if what == "weights":
        with torch.no_grad():
            parameter.view(-1)[0] = value
    elif what == "gradients":
        parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    elif what == "inputs":
        model.register_forward_pre_hook(lambda _, given: (torch.full_like(given[0], value),))
    elif what == "answers":
        model.register_forward_hook(lambda *given: given[-1] * value)


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("clip", [0.0, 5.0])
@pytest.mark.parametrize("what", ["weights", "gradients", "inputs", "answers"])
def test_training_stops_within_a_step_and_the_last_good_checkpoint_is_kept(tmp_path, what, clip, value):
    model = adapted()
    watcher = Poison(BATCHES + 1, lambda: spoil(what, value, model))
    name = "gradient's norm" if what == "gradients" else "loss"
    with pytest.raises(RunError, match=rf"^the {name} is (nan|inf) at epoch 2, batch 2\. Lower train\.lr"):
        run(model, tmp_path, watcher, clip=clip)
    assert watcher.after == 0
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert len(found.facts["history"]) == 1
    assert all(torch.isfinite(each).all() for each in found.tensors.values() if each.is_floating_point())
    if what == "gradients":  # it is found before the step
        assert all(torch.isfinite(each).all() for each in adapter_tensors(model).values())
    counted("trainings stopped")


@pytest.mark.parametrize("value", BAD, ids=str)
def test_adapter_that_breaks_down_in_the_last_step_is_never_the_best(tmp_path, value):
    """The validation does not see it: it goes by the base alone."""
    model = adapted()
    train = Points(*separable(24), batch_size=6)

    def break_down() -> None:
        with torch.no_grad():
            convpeft.trainable_parameters(model)[0].view(-1)[0] = value

    class Silent(Points):
        def __iter__(self):
            with convpeft.disabled(model):
                yield from super().__iter__()

    settings = TrainSection(epochs=3, lr=0.1, batch_size=6)
    watcher = Poison(2 * BATCHES, break_down)
    with pytest.raises(RunError, match=r"holds NaN or infinity after epoch 2\. Lower train\.lr"):
        val = Silent(*separable(seed=1), batch_size=8)
        fit(model, train, val, settings, checkpoints=tmp_path, watcher=watcher)
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert [row["epoch"] for row in found.facts["history"]] == [1]
    best = {key: each for key, each in found.tensors.items() if key.startswith("best/")}
    assert best
    assert all(torch.isfinite(each).all() for each in best.values())


@pytest.mark.parametrize("value", BAD, ids=str)
def test_adapter_that_is_not_finite_is_not_saved(tmp_path, value):
    model = adapted()
    with torch.no_grad():
        convpeft.trainable_parameters(model)[0].view(-1)[0] = value
    with pytest.raises(AdapterFileError, match="holds NaN or infinity and is not saved"):
        convpeft.save(model, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_figures_of_every_epoch_are_finite(tmp_path):
    model = adapted()
    seen: list[Epoch] = []

    class Watch(Poison):
        def epoch(self, row: Epoch) -> None:
            seen.append(row)

    with pytest.raises(RunError):
        run(model, tmp_path, Watch(0, None), lr=1e30, optimizer="sgd", clip=0.0)
    assert all(math.isfinite(row.val_loss) and math.isfinite(row.train_loss) for row in seen)
