"""The loop learns, touches adapters only, restores the best epoch, and goes on after a stop as if there was none."""

import math

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.adapters import METHODS, Adapter, load_methods
from convpeft.errors import ModelError, RunError
from convpeft.fingerprints import fingerprint
from convpeft.training.checkpoints import adapter_tensors
from convpeft.training.history import Epoch, Fit
from convpeft.training.loop import fit
from convpeft.training.objective import logits_of
from convpeft.training.recipe import TrainSection
from tiny import Points, perceptron, separable

SGD_TOLERANCE = 1e-6  # sums of a batch in another order, float32


def adapted(*, dropout: float = 0.0, method: str = "full", seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return convpeft.attach(perceptron(dropout=dropout), method, **options)


def run(model: nn.Module, *, batch_size: int = 6, shuffle: bool = True, count: int = 24, **keys) -> Fit:
    """Train on the separable points; keywords are of `fit` or of the train section."""
    arguments = {name: keys.pop(name) for name in ("class_weights", "checkpoints", "resume", "watcher") if name in keys}
    settings = TrainSection(**({"epochs": 2, "lr": 0.05, "batch_size": batch_size} | keys))
    train = Points(*separable(count), batch_size=batch_size, shuffle=shuffle)
    return fit(model, train, Points(*separable(seed=1), batch_size=8), settings, **arguments)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in adapter_tensors(model).items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


class Watch:
    """Notes what it is told, and can stop the training after an epoch."""

    def __init__(self, model: nn.Module | None = None, *, stop_after: int = 0) -> None:
        self.model, self.stop_after = model, stop_after
        self.steps, self.epochs, self.states = [], [], []

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self.steps.append((epoch, images, loss, accuracy))

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        if self.model is not None:
            self.states.append(state(self.model))
        if epoch.epoch == self.stop_after:
            raise KeyboardInterrupt


def test_loop_learns_a_separable_problem():
    model = adapted()
    fitted = run(model, epochs=12)
    assert fitted.best.val_accuracy >= 0.95
    assert fitted.history[-1].train_loss < 0.5 * fitted.history[0].train_loss


def test_loop_leaves_the_base_untouched():
    model = adapted(method="lora", rank=1)
    before = fingerprint(model)
    run(model)
    assert fingerprint(model) == before


def test_loop_changes_the_adapter():
    model = adapted()
    before = state(model)
    run(model)
    assert all(not torch.equal(value, before[key]) for key, value in state(model).items())


def test_best_epoch_is_restored_and_not_the_last():
    """Rates this high make validation go up and down, so that the best epoch is not the last one."""
    model = adapted()
    watch = Watch(model)
    fitted = run(model, epochs=6, lr=0.8, watcher=watch, schedule="constant", clip=0.0)
    ranked = max(fitted.history, key=lambda row: (row.val_accuracy, -row.val_loss))
    assert fitted.best == ranked
    assert fitted.best.epoch < len(fitted.history)
    assert_same(state(model), watch.states[fitted.best.epoch - 1])


def test_history_agrees_with_an_evaluation_of_the_restored_model():
    model = adapted()
    fitted = run(model, epochs=3)
    inputs, labels = separable(seed=1)
    with torch.no_grad():
        logits = model.eval()(inputs).double()
    assert math.isclose(fitted.best.val_loss, float(nn.functional.cross_entropy(logits, labels)), rel_tol=1e-6)
    assert fitted.best.val_accuracy == float((logits.argmax(1) == labels).double().mean())


def test_watcher_sees_every_image_and_every_epoch():
    watch = Watch()
    fitted = run(adapted(), watcher=watch, count=20)
    assert [(epoch, images) for epoch, images, _, _ in watch.steps] == [(e, n) for e in (1, 2) for n in (6, 6, 6, 2)]
    assert tuple(watch.epochs) == fitted.history
    assert watch.steps[3][2] == fitted.history[0].train_loss


def rates(monkeypatch, **keys) -> list[float]:
    """Learning rates at the optimiser's steps."""
    seen: list[float] = []
    step = torch.optim.SGD.step

    def noted(self, *arguments, **keywords):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    run(adapted(), optimizer="sgd", lr=1.0, **keys)
    return seen


def test_cosine_schedule_warms_up_and_falls(monkeypatch):
    # 24 points in fours are 6 steps an epoch, 12 in all; a quarter of them warms up.
    seen = rates(monkeypatch, batch_size=4, warmup=0.25)
    expected = [0.25, 0.5, 0.75, *(0.5 * (1 + math.cos(math.pi * k / 9)) for k in range(9))]
    assert seen == pytest.approx(expected, abs=1e-12)


def test_constant_schedule_stays_after_the_warm_up(monkeypatch):
    assert rates(monkeypatch, batch_size=4, warmup=0.25, schedule="constant") == [0.25, 0.5, 0.75, *[1.0] * 9]


def test_no_warm_up_starts_at_the_full_rate(monkeypatch):
    assert rates(monkeypatch, batch_size=4, warmup=0.0)[0] == 1.0


def test_schedule_counts_steps_and_not_batches(monkeypatch):
    assert (
        len(rates(monkeypatch, batch_size=4, accumulate=4, schedule="constant")) == 4
    )  # 6 batches: a step of 4, one of 2


@pytest.mark.parametrize(("accumulate", "batch_size"), [(2, 6), (4, 3), (3, 4)])
def test_accumulation_equals_one_big_batch(accumulate, batch_size):
    """24 points: steps of 12, and the last case has none left over; then one with a short last step."""
    keys = {"optimizer": "sgd", "shuffle": False, "clip": 0.1, "lr": 0.5}
    small, big = adapted(), adapted()
    run(small, batch_size=batch_size, accumulate=accumulate, **keys)
    run(big, batch_size=12, **keys)
    for key, value in state(small).items():
        torch.testing.assert_close(value, state(big)[key], rtol=0, atol=SGD_TOLERANCE)


def test_accumulation_weighs_a_short_last_step_as_a_step_of_its_own():
    """5 batches of 4 in threes: a step of 12 and a step of 8, as batches of 12 would make them."""
    keys = {"optimizer": "sgd", "shuffle": False, "clip": 0.0, "lr": 0.5, "count": 20}
    small, big = adapted(), adapted()
    run(small, batch_size=4, accumulate=3, **keys)
    run(big, batch_size=12, **keys)
    for key, value in state(small).items():
        torch.testing.assert_close(value, state(big)[key], rtol=0, atol=SGD_TOLERANCE)


def first_loss(**keys) -> float:
    """The loss of the first batch, before any step."""
    watch = Watch()
    run(adapted(), shuffle=False, watcher=watch, epochs=1, **keys)
    return watch.steps[0][2]


def test_class_weights_weigh_the_loss():
    inputs, labels = separable()
    weights = torch.tensor([0.2, 3.0])
    expected = nn.functional.cross_entropy(perceptron()(inputs[:6]), labels[:6], weight=weights)
    assert first_loss(class_weights=weights) == pytest.approx(expected.item(), rel=1e-6)


def test_label_smoothing_smooths_the_loss():
    inputs, labels = separable()
    expected = nn.functional.cross_entropy(perceptron()(inputs[:6]), labels[:6], label_smoothing=0.3)
    assert first_loss(label_smoothing=0.3) == pytest.approx(expected.item(), rel=1e-6)


def distance_of_one_step(**keys) -> float:
    model = adapted()
    before = state(model)
    run(model, epochs=1, batch_size=24, optimizer="sgd", lr=1.0, warmup=0.0, weight_decay=0.0, **keys)
    return math.sqrt(sum(float((value - before[key]).square().sum()) for key, value in state(model).items()))


def test_clipping_bounds_the_gradient():
    assert distance_of_one_step(clip=0.01) == pytest.approx(0.01, rel=1e-3)


def test_no_clipping_leaves_the_gradient():
    assert distance_of_one_step(clip=0.0) == pytest.approx(distance_of_one_step(clip=1e9), rel=1e-6)
    assert distance_of_one_step(clip=0.0) > 0.1


def test_patience_stops_after_so_many_epochs_without_a_better_one():
    fitted = run(adapted(), epochs=20, lr=1e-12, patience=3)
    assert fitted.stopped_early
    assert len(fitted.history) == fitted.best.epoch + 3


def test_no_patience_goes_on_to_the_end():
    fitted = run(adapted(), epochs=5, lr=1e-12)
    assert not fitted.stopped_early
    assert len(fitted.history) == 5


@pytest.mark.promise("F06")
def test_loss_that_is_not_finite_stops_the_run_and_names_the_epoch():
    model = adapted()
    watch = Watch()

    def poison(epoch: int, images: int, loss: float, accuracy: float) -> None:
        if (epoch, len(watch.steps)) == (2, 5):  # after the second batch of the second epoch
            with torch.no_grad():
                convpeft.trainable_parameters(model)[0].fill_(math.nan)
        watch.steps.append((epoch, images, loss, accuracy))

    watch.step = poison
    with pytest.raises(RunError, match=r"^the loss is nan at epoch 2, batch 3\. Lower train\.lr \(it is 0\.05\)"):
        run(model, watcher=watch)


@pytest.mark.promise("F06")
def test_adapter_that_overflows_in_the_last_step_of_an_epoch_stops_the_run():
    with pytest.raises(RunError, match=r"^validation after epoch 1: .*NaN or infinity"):
        run(adapted(), epochs=2, lr=1e38, batch_size=24, optimizer="sgd", clip=0.0, warmup=0.0)


def test_default_rate_is_that_of_the_method(monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_, **__: seen.append(self.param_groups[0]["lr"]))
    run(adapted(), lr=None, schedule="constant", warmup=0.0)
    assert set(seen) == {METHODS["full"].learning_rate}


def interrupted(path, **keys) -> nn.Module:
    """Stop after epoch 2 and go on in a new model, as a new process would."""
    with pytest.raises(KeyboardInterrupt):
        run(adapted(**keys), checkpoints=path, watcher=Watch(stop_after=2), **SHARED)
    torch.manual_seed(12345)
    model = adapted(seed=0, **keys)
    torch.manual_seed(54321)  # the checkpoint holds the random state
    fitted = run(model, checkpoints=path, resume=True, **SHARED)
    assert [row.epoch for row in fitted.history] == [1, 2, 3, 4, 5]
    return model


SHARED = {"epochs": 5, "lr": 0.3}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_interrupted_run_ends_in_the_same_adapter(tmp_path, dropout):
    whole = adapted(dropout=dropout)
    fitted = run(whole, checkpoints=tmp_path / "whole", **SHARED)
    assert fitted.best.epoch > 2  # else the checkpoint alone would hold the answer
    assert_same(state(interrupted(tmp_path / "cut", dropout=dropout)), state(whole))


def test_interrupted_run_tells_the_same_history(tmp_path):
    whole = run(adapted(dropout=0.4), checkpoints=tmp_path / "whole", **SHARED)
    with pytest.raises(KeyboardInterrupt):
        run(adapted(dropout=0.4), checkpoints=tmp_path / "cut", watcher=Watch(stop_after=3), **SHARED)
    resumed = run(adapted(dropout=0.4), checkpoints=tmp_path / "cut", resume=True, **SHARED)
    figures = [(row.epoch, row.train_loss, row.val_loss, row.val_accuracy, row.lr) for row in resumed.history]
    assert figures == [(row.epoch, row.train_loss, row.val_loss, row.val_accuracy, row.lr) for row in whole.history]


def test_resuming_a_finished_run_gives_its_best_epoch_again(tmp_path):
    model = adapted()
    fitted = run(model, checkpoints=tmp_path, epochs=4, lr=0.8, schedule="constant", clip=0.0)
    again = adapted()
    resumed = run(again, checkpoints=tmp_path, resume=True, epochs=4, lr=0.8, schedule="constant", clip=0.0)
    assert resumed.best == fitted.best
    assert_same(state(again), state(model))


def test_resuming_where_nothing_was_written_starts_anew(tmp_path):
    one, other = adapted(), adapted()
    run(one, checkpoints=tmp_path / "a")
    run(other, checkpoints=tmp_path / "b", resume=True)
    assert_same(state(one), state(other))


def test_resuming_goes_on_from_the_previous_checkpoint_when_the_last_is_damaged(tmp_path):
    whole = adapted(dropout=0.4)
    run(whole, checkpoints=tmp_path, **SHARED)
    (tmp_path / "last" / "state.safetensors").write_bytes(b"damaged")
    again, watch = adapted(dropout=0.4), Watch()
    run(again, checkpoints=tmp_path, resume=True, watcher=watch, **SHARED)
    assert [row.epoch for row in watch.epochs] == [5]
    assert_same(state(again), state(whole))


def test_early_stop_holds_when_the_run_is_resumed(tmp_path):
    keys = {"epochs": 20, "lr": 1e-12, "patience": 2, "checkpoints": tmp_path}
    fitted = run(adapted(), **keys)
    resumed = run(adapted(), resume=True, **keys)
    assert resumed.stopped_early
    assert resumed.history == fitted.history


class Toy(Adapter):
    """Scales a weight; counts what the loop calls. It is not registered, so no other test meets it."""

    def __init__(self, site, *, strength: float = 0.0) -> None:
        super().__init__(site)
        self.gain, self.strength, self.after, self.asked = nn.Parameter(torch.ones(())), strength, 0, 0

    def start(self, weight, bias, generator) -> None:
        pass

    def forward(self, weight, bias):
        return weight * self.gain, bias

    def param_groups(self):
        return [{"params": [self.gain], "lr_scale": 16.0, "weight_decay": 0.25}]

    def penalty(self):
        self.asked += 1
        return self.strength * self.gain.square().sum()

    @classmethod
    def after_step(cls, parts, progress, optimizer) -> None:
        assert isinstance(optimizer, torch.optim.Optimizer)
        for part in parts:
            assert part.gain.grad is not None
            part.after = progress.step


@pytest.fixture
def toy(monkeypatch):
    load_methods()
    monkeypatch.setitem(METHODS, "toy", Toy)
    monkeypatch.setattr(Toy, "method_name", "toy")


def toys(model: nn.Module) -> list[Toy]:
    return [module for module in model.modules() if isinstance(module, Toy)]


@pytest.mark.usefixtures("toy")
def test_penalty_of_the_method_is_asked_at_every_batch_and_after_step_called_at_every_step():
    model = adapted(method="toy", include=["linear"], exclude=[])
    run(model, epochs=2, batch_size=6, accumulate=2)  # 4 batches and 2 steps an epoch
    assert [(part.asked, part.after) for part in toys(model)] == [(8, 4), (8, 4)]


@pytest.mark.usefixtures("toy")
def test_penalty_of_the_method_is_part_of_what_is_minimised():
    model = adapted(method="toy", include=["linear"], exclude=[], strength=1e4)
    watch = Watch(model)
    run(model, epochs=30, lr=0.002, schedule="constant", watcher=watch)
    assert all(value.abs() < 0.1 for value in watch.states[-1].values())


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("lr", [None, 0.01])
def test_rates_and_decay_of_the_method_reach_the_optimiser_once(monkeypatch, lr):
    groups: list[dict] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_, **__: groups.extend(map(dict, self.param_groups)))
    model = adapted(method="toy", include=["linear"], exclude=[])
    run(model, epochs=1, batch_size=24, lr=lr, schedule="constant", warmup=0.0)
    rate = Toy.learning_rate if lr is None else lr
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(pytest.approx(16 * rate), 0.25)]


def test_bf16_trains_and_validates():
    model = adapted()
    fitted = run(model, epochs=8, precision="bf16")
    assert fitted.best.val_accuracy > 0.9


def test_bf16_computes_in_another_precision():
    plain, rounded = adapted(), adapted()
    assert run(plain).history[0].train_loss != run(rounded, precision="bf16").history[0].train_loss


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_model_is_left_without_traces_of_the_engine(precision):
    model = adapted()
    names = set(model.__dict__) | {"_is_accelerate_prepared"}
    run(model, precision=precision)
    assert set(model.__dict__) == names
    with torch.no_grad():
        assert model(torch.ones(1, 4)).dtype == torch.float32


def test_model_is_left_without_traces_when_training_fails():
    model = adapted()
    names = set(model.__dict__) | {"_is_accelerate_prepared"}
    with pytest.raises(RunError):
        run(model, lr=1e38, batch_size=24, optimizer="sgd", clip=0.0, warmup=0.0, precision="bf16")
    assert set(model.__dict__) == names


def test_runs_of_two_precisions_in_one_process_are_what_they_are_alone():
    alone = run(adapted()).history[-1].train_loss
    run(adapted(), precision="bf16")
    assert run(adapted()).history[-1].train_loss == alone


def test_model_without_adapter_is_refused():
    with pytest.raises(ModelError, match="no adapter is attached"):
        run(perceptron())


def test_logits_of_an_answer_with_auxiliary_classifiers_are_the_main_ones():
    class Answer:
        logits = torch.ones(2, 3)

    assert torch.equal(logits_of(Answer()), torch.ones(2, 3))
    assert torch.equal(logits_of((torch.zeros(2, 3), torch.ones(2, 3))), torch.zeros(2, 3))


def test_norms_with_frozen_statistics_stay_while_the_loop_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    convpeft.attach(model, "lora", rank=1)
    run(model)
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert int(model[1].num_batches_tracked) == 0


def test_rates_go_by_steps_where_gradients_are_accumulated(monkeypatch):
    # 24 points in fours and two batches a step are 3 steps an epoch, 6 in all.
    seen = rates(monkeypatch, batch_size=4, accumulate=2, warmup=0.0)
    assert seen == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)], abs=1e-12)


def test_order_of_the_images_changes_with_the_epoch():
    model = adapted()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()) if module.training else None)
    run(model, epochs=2, batch_size=6)
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert not torch.equal(first, second)
