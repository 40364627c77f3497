"""A training that is stopped or killed anywhere, in the middle of an epoch too, ends as if it had not been."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.errors import RunError
from convpeft.training.checkpoints import Checkpoint, adapter_tensors, read_checkpoint, write_checkpoint
from convpeft.training.history import Fit
from convpeft.training.loop import fit
from convpeft.training.recipe import TrainSection
from convpeft.training.stopping import Interrupted, Stopped, Terminated
from measuring import times
from tiny import Points, perceptron, separable

BATCHES, EPOCHS = 5, 3  # 28 points in sixes: four whole batches and one of four


def adapted(method: str = "full", **options) -> nn.Module:
    torch.manual_seed(0)
    return convpeft.attach(perceptron(dropout=0.4), method, **options)


def run(model: nn.Module, *, watcher=None, val=None, **keys) -> Fit:
    arguments = {name: keys.pop(name) for name in ("checkpoints", "resume", "save_every") if name in keys}
    settings = TrainSection(**({"epochs": EPOCHS, "lr": 0.3, "batch_size": 6} | keys))
    train = Points(*separable(28), batch_size=6, shuffle=True)
    val = Points(*separable(seed=1), batch_size=8) if val is None else val
    return fit(model, train, val, settings, watcher=watcher, **arguments)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in adapter_tensors(model).items()}


def figures(fitted: Fit) -> list[tuple]:
    return [(row.epoch, row.train_loss, row.train_accuracy, row.val_loss, row.lr) for row in fitted.history]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


class At:
    """Does something once, after so many batches of the whole training."""

    def __init__(self, batch: int, act) -> None:
        self.left, self.act = batch, act

    def step(self, *_) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def epoch(self, _) -> None:
        pass


def sends(number: int):
    return lambda: signal.raise_signal(number)


def fail() -> None:
    raise ZeroDivisionError


def stop_and_go_on(path: Path, batch: int, *, method: str = "full", options=None, **keys) -> tuple[nn.Module, Fit]:
    """Stop after a batch by a signal, and go on in a new model as a new process would."""
    with pytest.raises(Stopped):
        run(adapted(method, **(options or {})), checkpoints=path, watcher=At(batch, sends(signal.SIGTERM)), **keys)
    model = adapted(method, **(options or {}))
    torch.manual_seed(54321)  # the checkpoint holds the random state
    return model, run(model, checkpoints=path, resume=True, **keys)


@pytest.mark.promise("F03")
@pytest.mark.parametrize("batch", range(1, BATCHES * EPOCHS + 1))
def test_training_stopped_after_any_batch_ends_in_the_same_adapter_and_history(tmp_path, batch):
    whole = adapted()
    expected = run(whole)
    model, fitted = stop_and_go_on(tmp_path, batch)
    assert_same(state(model), state(whole))
    assert figures(fitted) == figures(expected)


@pytest.mark.promise("F03")
@pytest.mark.parametrize(
    ("method", "options", "keys"),
    [
        ("full", {}, {"accumulate": 3}),
        ("full", {}, {"optimizer": "sgd", "accumulate": 2}),
        ("full", {}, {"precision": "bf16"}),
        ("full", {}, {"objective": "lwf"}),
        ("full", {}, {"objective": "l2-sp"}),
        ("lora", {"rank": 1}, {"schedule": "constant"}),
        ("adalora", {}, {"epochs": 6}),
        ("mlae", {}, {}),
        ("loca", {}, {}),
        ("ssf", {}, {"patience": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 7, 13])
def test_every_state_of_a_training_is_put_back(tmp_path, batch, method, options, keys):
    whole = adapted(method, **options)
    expected = run(whole, **keys)
    model, fitted = stop_and_go_on(tmp_path, batch, method=method, options=options, **keys)
    assert_same(state(model), state(whole))
    assert figures(fitted) == figures(expected)


def test_gradient_between_the_batches_of_a_step_is_put_back(tmp_path):
    """The history tells, also where an epoch before the stop is the best one and its adapter is the result."""
    expected = run(adapted(), accumulate=3)
    _, fitted = stop_and_go_on(tmp_path, 7, accumulate=3)
    assert figures(fitted) == figures(expected)


@pytest.mark.promise("F03")
def test_signal_during_validation_stops_it_and_the_epoch_is_not_trained_again(tmp_path):
    class Signalling(Points):
        def __iter__(self):
            for batch in super().__iter__():
                signal.raise_signal(signal.SIGTERM)
                yield batch

    whole = adapted()
    expected = run(whole)
    with pytest.raises(Terminated, match="in epoch 1, after batch 5"):
        run(adapted(), checkpoints=tmp_path, val=Signalling(*separable(seed=1), batch_size=8))
    model = adapted()
    torch.manual_seed(54321)
    seen = At(0, None)
    fitted = run(model, checkpoints=tmp_path, resume=True, watcher=seen)
    assert -seen.left == BATCHES * (EPOCHS - 1)
    assert_same(state(model), state(whole))
    assert figures(fitted) == figures(expected)


@pytest.mark.promise("F01")
def test_checkpoint_within_an_epoch_is_where_a_failure_goes_on(tmp_path):
    whole = adapted()
    run(whole)
    with pytest.raises(ZeroDivisionError):
        run(adapted(), checkpoints=tmp_path, save_every=0.0, watcher=At(8, fail))
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert (found.facts["position"]["epoch"], found.facts["position"]["batches"]) == (2, 2)
    model, seen = adapted(), At(0, None)
    run(model, checkpoints=tmp_path, resume=True, watcher=seen)
    assert -seen.left == BATCHES * EPOCHS - 7
    assert_same(state(model), state(whole))


@pytest.mark.promise("F06")
def test_state_that_has_broken_down_replaces_no_checkpoint(tmp_path):
    model = adapted()

    def poison() -> None:
        with torch.no_grad():
            convpeft.trainable_parameters(model)[0].fill_(torch.nan)

    with pytest.raises(RunError, match="the loss is nan at epoch 2, batch 3"):
        run(model, checkpoints=tmp_path, save_every=0.0, watcher=At(BATCHES + 2, poison))
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert (found.facts["position"]["epoch"], found.facts["position"]["batches"]) == (2, 1)
    assert all(torch.isfinite(value).all() for value in found.tensors.values())


def test_checkpoints_within_an_epoch_are_rare(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(adapted(), checkpoints=tmp_path, watcher=At(4, fail))
    assert read_checkpoint(tmp_path / "last") is None


@pytest.mark.promise("F05")
def test_damaged_checkpoint_does_not_push_out_the_good_one_before_it(tmp_path):
    run(adapted(), checkpoints=tmp_path)
    (tmp_path / "last" / "state.json").write_bytes(b"damaged")
    with pytest.raises(ZeroDivisionError):
        run(adapted(), checkpoints=tmp_path, resume=True, watcher=At(1, fail))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.previous"]
    found = read_checkpoint(tmp_path / "last")
    assert found is not None
    assert found.damaged is None


@pytest.mark.parametrize(
    ("number", "error", "status"), [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Terminated, 143)]
)
def test_stop_says_which_signal_and_where(tmp_path, number, error, status):
    with pytest.raises(error, match=rf"^stopped by {number.name} in epoch 2, after batch 2$") as caught:
        run(adapted(), checkpoints=tmp_path, watcher=At(BATCHES + 2, sends(number)))
    assert caught.value.status == status


def test_signal_in_the_last_moment_is_not_lost(tmp_path):
    class Late(At):
        def epoch(self, row) -> None:
            if row.epoch == EPOCHS:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated, match=f"after epoch {EPOCHS}"):
        run(adapted(), checkpoints=tmp_path, watcher=Late(0, None))


def test_training_without_checkpoints_leaves_signals_alone():
    with pytest.raises(KeyboardInterrupt) as caught:
        run(adapted(), watcher=At(2, sends(signal.SIGINT)))
    assert not isinstance(caught.value, Stopped)


def stored_by_two(path: Path) -> None:
    """Make the checkpoint one of two processes."""
    found = read_checkpoint(path / "last")
    assert found is not None
    write_checkpoint(Checkpoint(found.tensors, found.facts | {"places": 2 * found.facts["places"]}), path / "last")


def test_checkpoint_within_an_epoch_of_two_processes_is_not_taken_up_by_one(tmp_path):
    with pytest.raises(Terminated):
        run(adapted(), checkpoints=tmp_path, watcher=At(2, sends(signal.SIGTERM)))
    stored_by_two(tmp_path)
    with pytest.raises(RunError, match=r"was written within an epoch by 2 processes, and 1 go on\. Resume with 2\."):
        run(adapted(), checkpoints=tmp_path, resume=True)


def test_checkpoint_between_epochs_of_two_processes_is_taken_up_by_one(tmp_path):
    class Stop(At):
        def epoch(self, _) -> None:
            fail()

    with pytest.raises(ZeroDivisionError):
        run(adapted(), checkpoints=tmp_path, watcher=Stop(0, None))
    stored_by_two(tmp_path)
    assert len(run(adapted(), checkpoints=tmp_path, resume=True).history) == EPOCHS


KILLED = """
import os, random, signal, sys
sys.path[:0] = {paths!r}
from test_resuming import At, adapted, run, state
from pathlib import Path
import torch
model, ready = adapted(), At(1, lambda: print("ready", flush=True))
run(model, checkpoints=Path(sys.argv[1]), resume=True, save_every=0.0, epochs=40, watcher=ready)
torch.save(state(model), sys.argv[2])
"""


@pytest.mark.promise("F01")
def test_training_killed_again_and_again_ends_in_the_same_adapter(tmp_path):
    """SIGKILL at random times, among them within writing a checkpoint after every batch."""
    whole, most = adapted(), times(full=20, reduced=1)
    run(whole, epochs=40)
    here = Path(__file__).parent
    code = KILLED.format(paths=[str(here), str(here.parent)])
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoints"), str(tmp_path / "state.pt")]
    draw, kills = random.Random(most), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            _, err = process.communicate(timeout=draw.uniform(0.0, 0.4) if kills < most else 120)
        except subprocess.TimeoutExpired:
            kills += 1
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            continue
        assert process.returncode == 0, err
        break
    assert kills > 0
    assert_same(torch.load(tmp_path / "state.pt", weights_only=True), state(whole))
