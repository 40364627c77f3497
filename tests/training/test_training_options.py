"""Kernels, layout, checkpointing, compiling and fused optimisers change what a training costs, not what it does."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.exc import InvalidCxxCompiler
from torch.optim.optimizer import register_optimizer_step_pre_hook

import convpeft
from contract.networks import randomise
from convpeft.errors import ModelError, OptionError, RunError
from convpeft.kernels import KernelPlan
from convpeft.training import choosing, engine
from convpeft.training.checkpoints import Checkpoint, adapter_tensors, read_checkpoint, write_checkpoint
from convpeft.training.engine import Engine
from convpeft.training.history import Fit
from convpeft.training.loop import fit
from convpeft.training.options import check_settings
from convpeft.training.preparing import check_prefix
from convpeft.training.recipe import TrainSection, make_recipe
from convpeft.training.recomputing import Recomputing
from convpeft.training.runs import open_run, run_prepared
from tiny import Points, perceptron, recipe, separable, write_images

FLOAT32_TOLERANCE = 1e-5  # the same sums in another order
GRADIENT_TOLERANCE = 1e-6  # the same operations twice; float32
DEFINITION = {"kernel": "weight", "layout": "channels_last", "fold": False, "optimizer": "sgd", "lr": 0.1}
LAYERS = ("stem", "first.conv1", "first.conv2", "second.conv1", "second.conv2")


class Block(nn.Module):
    """Two convolutions with what a block of a residual network has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.drop(self.norm(self.conv1(x)).relu()))


class Blocks(nn.Module):
    """A stem, two blocks and a classifier of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first, self.second = Block(8), Block(8)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.pool(self.first(self.stem(x)))).mean((2, 3)))


def adapted(method: str = "lora", **options) -> nn.Module:
    torch.manual_seed(0)
    return randomise(convpeft.attach(Blocks().eval(), method, **options), 1)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 14, 14, generator=generator)
    return images, (images.mean((1, 2, 3)) > 0).long()


def run(model: nn.Module, *, count: int = 16, **keys) -> Fit:
    """Train on pictures; keywords are of `fit` or of the train section."""
    names = ("checkpoints", "resume", "watcher")
    arguments = {name: keys.pop(name) for name in names if name in keys}
    settings = TrainSection(**({"epochs": 2, "lr": 0.01, "batch_size": 6} | keys))
    torch.manual_seed(3)
    train = Points(*pictures(count), batch_size=settings.batch_size, shuffle=True)
    return fit(model, train, Points(*pictures(8), batch_size=8), settings, **arguments)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in adapter_tensors(model).items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


class Stop:
    """Ends a training after its first epoch."""

    def step(self, *_) -> None:
        pass

    def epoch(self, row) -> None:
        raise KeyboardInterrupt


def stopped(model: nn.Module, path: Path, **keys) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(model, checkpoints=path, watcher=Stop(), **keys)


@pytest.fixture
def cost_model(monkeypatch):
    """Have the cost model answer what is set."""
    return lambda answer: monkeypatch.setattr("convpeft.kernels.running._pays", answer)


@pytest.mark.parametrize("kernel", ["weight", "side", "hybrid"])
def test_kernel_of_the_recipe_computes_every_layer(kernel):
    plan = run(adapted(), kernel=kernel).kernels
    assert plan is not None
    assert {path: plan.sites[path] for path in LAYERS} == dict.fromkeys(LAYERS, kernel)


def test_layout_and_folding_of_the_recipe_are_used():
    one = run(adapted(), layout="contiguous", fold=False).kernels
    other = run(adapted(), layout="channels_last", kernel="hybrid").kernels
    assert one is not None
    assert other is not None
    assert (one.layout, dict(one.folded)) == ("contiguous", {})
    assert (other.layout, dict(other.folded)) == (
        "channels_last",
        {"first.conv1": "first.norm", "second.conv1": "second.norm"},
    )


@pytest.mark.parametrize("keys", [{"kernel": "side"}, {"kernel": "hybrid"}, {"checkpointing": True}], ids=str)
def test_training_ends_in_the_same_adapter_whatever_it_costs(keys):
    plain, other = adapted(), adapted()
    run(plain, **DEFINITION)
    run(other, **(DEFINITION | keys))
    assert distance(state(plain), state(other)) <= FLOAT32_TOLERANCE


def test_training_ends_in_the_same_adapter_in_either_layout():
    """Without dropout, which draws its mask in the order of memory."""
    plain, other = adapted(), adapted()
    for model in (plain, other):
        model.first.drop.p = model.second.drop.p = 0.0
    run(plain, **DEFINITION)
    run(other, **(DEFINITION | {"layout": "contiguous"}))
    assert distance(state(plain), state(other)) <= FLOAT32_TOLERANCE


def test_resumed_run_computes_as_it_was_begun_whatever_the_cost_model_says_now(tmp_path, cost_model):
    cost_model(lambda *_, **__: True)
    whole = adapted()
    run(whole)
    stopped(adapted(), tmp_path)
    cost_model(lambda *_, **__: False)
    model = adapted()
    fitted = run(model, checkpoints=tmp_path, resume=True)
    assert fitted.kernels is not None
    assert {fitted.kernels.sites[path] for path in LAYERS} == {"hybrid"}
    assert distance(state(model), state(whole)) == 0


def test_run_takes_the_layout_and_folding_it_was_begun_with(tmp_path, monkeypatch):
    stopped(adapted(), tmp_path, layout="auto")
    monkeypatch.setattr("convpeft.forwards._wants_channels_last", lambda _, computing: computing.layout != "auto")
    fitted = run(adapted(), checkpoints=tmp_path, resume=True)
    assert fitted.kernels is not None
    assert fitted.kernels.layout == "channels_last"


def test_smaller_last_batch_is_computed_as_the_first(cost_model):
    cost_model(lambda site, rank, x, **_: len(x) == 6)
    fitted = run(adapted(), count=16)
    assert fitted.kernels is not None
    assert {fitted.kernels.sites[path] for path in LAYERS} == {"hybrid"}


def test_fit_leaves_what_was_asked_for_on_the_model():
    model = adapted()
    convpeft.set_kernels(model, kernel="side", sites={"stem": "weight"})
    run(model, kernel="hybrid")
    kept = convpeft.kernels_of(model).kernel, convpeft.injection.state_of(model).computing.forced
    assert kept == ("side", {"stem": "weight"})


def with_record(path: Path, record: object) -> None:
    """Change what a checkpoint says of the kernels."""
    found = read_checkpoint(path / "last")
    assert found is not None
    write_checkpoint(Checkpoint(found.tensors, found.facts | {choosing.RECORD: record}), path / "last")


GOOD = KernelPlan("auto", "contiguous", True, {"stem": "side"}, {}, {}).to_dict()


@pytest.mark.parametrize(
    "record",
    [
        None,
        "hybrid",
        [],
        {},
        GOOD | {"kernel": "fastest"},
        GOOD | {"kernel": ["auto"]},
        GOOD | {"layout": "sideways"},
        GOOD | {"fold": 1},
        GOOD | {"sites": {"stem": "fastest"}},
        GOOD | {"sites": {"stem": 3}},
        GOOD | {"folded": ["stem"]},
        GOOD | {"unfolded": None},
    ],
    ids=str,
)
def test_damaged_record_is_not_used(record):
    assert choosing.read_record({choosing.RECORD: record}) is None
    assert choosing.read_record({choosing.RECORD: GOOD}) is not None


def test_run_with_a_damaged_record_chooses_anew(tmp_path):
    stopped(adapted(), tmp_path, kernel="side")
    with_record(tmp_path, "nonsense")
    fitted = run(adapted(), checkpoints=tmp_path, resume=True, kernel="hybrid")
    assert fitted.kernels is not None
    assert fitted.kernels.sites["stem"] == "hybrid"


def test_run_with_a_damaged_record_says_so(tmp_path):
    data = write_images(tmp_path / "pictures")
    values = recipe(data, tmp_path / "run", train__epochs=1)
    with open_run(make_recipe(values)) as prepared:
        run_prepared(prepared, tmp_path / "run", resume=False, watcher=None)
    with open_run(make_recipe(values), resume=True) as prepared:
        assert not any("how layers were computed" in note for note in prepared.notes)
    with_record(tmp_path / "run" / "checkpoints", {"sites": 3})
    with open_run(make_recipe(values), resume=True) as prepared:
        assert any("does not say how layers were computed. That is chosen anew." in note for note in prepared.notes)


def test_record_of_another_model_is_refused(tmp_path):
    stopped(adapted(), tmp_path)
    with_record(tmp_path, GOOD | {"sites": {"tail": "side"}})
    with pytest.raises(RunError, match=r"is not of this run .*no adapted layer is called 'tail'"):
        run(adapted(), checkpoints=tmp_path, resume=True)


def test_kernels_are_in_the_metrics_of_a_run(tmp_path):
    data = write_images(tmp_path / "pictures")
    result = convpeft.train(recipe(data, tmp_path / "run", train__epochs=1, train__kernel="side"))
    assert '"kernel": "side"' in (result.out / "metrics.json").read_text()


def test_autotune_runs_before_the_first_step_and_not_after_a_resume(tmp_path, monkeypatch):
    told = []

    def tune(model, images, **_):
        told.append(tuple(images.shape))
        convpeft.set_kernels(model, sites={"stem": "side"})

    monkeypatch.setattr(choosing, "autotune", tune)
    stopped(adapted(), tmp_path, autotune=True)
    fitted = run(adapted(), checkpoints=tmp_path, resume=True, autotune=True)
    assert told == [(6, 3, 14, 14)]
    assert fitted.kernels is not None
    assert fitted.kernels.sites["stem"] == "side"


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(4)
    model.zero_grad()
    model.train()(images).square().sum().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("method", convpeft.list_methods())
def test_checkpointing_gives_the_same_gradients(method):
    images, _ = pictures(4)
    model = adapted(method)
    convpeft.set_kernels(model, fold=False)
    plain = gradients(model, images)
    recomputing = Recomputing(model)
    again = gradients(model, images)
    recomputing.remove()
    largest = max(float(each.abs().max()) for each in plain.values())
    assert plain
    assert distance(plain, again) <= GRADIENT_TOLERANCE * max(1.0, largest)


@pytest.mark.parametrize("norm", ["adapt", "train"])
def test_checkpointing_moves_statistics_once(norm):
    images, _ = pictures(4)
    plain, other = adapted(norm=norm), adapted(norm=norm)
    recomputing = Recomputing(other)
    for model in (plain, other):
        gradients(model, images)
    recomputing.remove()
    statistics = [dict(model.named_buffers()) for model in (plain, other)]
    assert distance(*statistics) <= FLOAT32_TOLERANCE
    assert any("num_batches_tracked" in key and int(value) == 1 for key, value in statistics[1].items())


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        output = model.train()(images)
    del output
    return sum(sizes.values())


def test_checkpointing_keeps_less():
    images, _ = pictures(32)
    model = adapted()
    plain = saved_bytes(model, images)
    recomputing = Recomputing(model)
    less = saved_bytes(model, images)
    recomputing.remove()
    assert less < 0.6 * plain


def test_checkpointing_leaves_no_trace():
    model = adapted()
    before = {path: set(module.__dict__) for path, module in model.named_modules() if path}
    run(model, checkpointing=True, epochs=1)
    assert {path: set(module.__dict__) for path, module in model.named_modules() if path} == before
    assert "forward" not in model.__dict__


def test_checkpointing_gives_a_forward_that_was_there_before_back():
    model = adapted()
    own = functools.partial(Block.forward, model.first)
    model.first.forward = own
    recomputing = Recomputing(model)
    assert model.first.forward is not own
    recomputing.remove()
    assert model.first.forward is own


def test_checkpointing_does_not_change_the_layout():
    fitted = run(adapted(), checkpointing=True, epochs=1)
    assert fitted.kernels is not None
    assert fitted.kernels.layout == "channels_last"


def test_checkpointing_of_a_network_without_blocks_is_refused():
    model = convpeft.attach(perceptron(), "lora", rank=1)
    with pytest.raises(ModelError, match="Sequential has no blocks from one tensor to one"):
        Recomputing(model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpointing": True, "compile": True}, "exclude each other: a compiled network chooses by itself"),
        ({"objective": "lwf", "processes": 2}, "train.objective='lwf' runs in one process"),
        ({"autotune": True, "processes": 2}, "train.autotune=true runs in one process. Tune there first"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(keys, message):
    processes = keys.pop("processes", 1)
    with pytest.raises(OptionError, match=message):
        check_settings(TrainSection(**keys), processes)


def test_checkpointing_and_a_demanded_prefix_cache_exclude_each_other():
    values = {"model": {"source": "small-cnn"}, "data": {"source": "folder:x"}}
    checked = make_recipe(values | {"train": {"checkpointing": True, "prefix_cache": "on"}})
    with pytest.raises(OptionError, match=r"train\.checkpointing works on whole blocks"):
        check_prefix(checked)


@pytest.fixture
def compiler(monkeypatch):
    """Have torch.compile use a backend of the test's."""
    torch._dynamo.reset()
    own = torch.compile
    return lambda backend: monkeypatch.setattr(torch, "compile", functools.partial(own, backend=backend))


def test_compiled_training_ends_in_the_same_adapter(compiler):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiler(backend)
    plain, other = adapted(), adapted()
    keys = DEFINITION | {"layout": "contiguous", "epochs": 1}
    run(plain, count=12, **keys)
    run(other, count=12, compile=True, **keys)
    assert graphs
    assert distance(state(plain), state(other)) <= FLOAT32_TOLERANCE
    assert "forward" not in other.__dict__


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidCxxCompiler(), "no C\\+\\+ compiler that works was found.*Install one"),
        (ValueError("purple\nelephants"), r"cannot be compiled \(purple\). Set train.compile=false\."),
    ],
)
def test_error_of_the_compiler_is_one_line(compiler, error, message):
    def backend(*_):
        raise error

    compiler(backend)
    with pytest.raises(RunError, match=message) as caught:
        run(adapted(), compile=True, epochs=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_optimiser_takes_the_steps_of_the_plain_one(optimizer, dtype):
    found = []
    for fused in (False, True):
        model = convpeft.attach(perceptron(), "full").to(dtype)
        settings = TrainSection(optimizer=optimizer, lr=0.05, weight_decay=0.1)
        made = engine._make_optimizer(model, settings, fused=fused)
        inputs, labels = separable()
        for _ in range(5):
            nn.functional.cross_entropy(model.train()(inputs.to(dtype)), labels).backward()
            made.step()
            made.zero_grad()
        found.append(state(model))
    assert distance(*found) <= (1e-12 if dtype == torch.float64 else FLOAT32_TOLERANCE)


def test_optimiser_is_fused_in_every_group():
    model = adapted(num_classes=2)
    batches = Points(*pictures(6), batch_size=6)
    made = Engine(model, batches, TrainSection(), None)
    try:
        assert all(group["fused"] for group in made.optimizer.param_groups)
        assert len(made.optimizer.param_groups) > 1
    finally:
        made.close()


@pytest.mark.parametrize("method", ["lora", "lora-fa", "bitfit", "probe"])
def test_frozen_layers_have_no_gradient_and_no_state(method):
    model = adapted(method)
    frozen = [each for each in model.parameters() if not each.requires_grad]
    trained = {id(each) for each in model.parameters() if each.requires_grad}
    steps = []

    def look(optimizer, *_):
        steps.append([each.grad for each in frozen])
        assert {id(each) for each in optimizer.state} <= trained

    handle = register_optimizer_step_pre_hook(look)
    try:
        run(model, epochs=1)
    finally:
        handle.remove()
    assert steps
    assert all(each is None for step in steps for each in step)


def test_model_sees_autocast_when_its_forward_begins():
    model = adapted()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append((model.training, torch.is_autocast_enabled("cpu"))))
    run(model, precision="bf16", epochs=1)
    assert (True, True) in seen
    assert (True, False) not in seen
