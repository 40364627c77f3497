"""Cached features are those of the images, in the order of an epoch, and are trusted only where every byte is right."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convpeft
from contract.networks import randomise
from convpeft.data import Dataset, ImageBatches
from convpeft.data.datasets import array_split
from convpeft.models import Preprocessing
from convpeft.training import make_recipe
from convpeft.training.checkpoints import adapter_tensors
from convpeft.training.features import (
    CannotKeep,
    FeatureBatches,
    Maker,
    Unusable,
    Wanted,
    map_features,
    read_features,
    write_features,
)
from convpeft.training.history import Fit
from convpeft.training.loop import fit
from convpeft.training.prefix import Prefix
from convpeft.training.preparing import Prepared, class_weights
from convpeft.training.serving import serve
from convpeft.training.splitting import split_network

SIZE, COUNT = 10, 22
PREPROCESSING = Preprocessing((SIZE, SIZE), "squash", 1.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 3, "bilinear")
SETTINGS = {"numbers": 6 * 8 * 8, "model": "this one"}


class Rounds(nn.Module):
    """Leaves numbers that half precision holds exactly."""

    def forward(self, x: Tensor) -> Tensor:
        return x.half().to(x.dtype)


class Scales(nn.Module):
    """Makes numbers that half precision cannot hold."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def network(between: nn.Module | None = None, **options: Any) -> nn.Module:
    """A network whose second convolution is adapted, with all its adapter tensors perturbed.

    Dropout follows the flattening: of maps it would draw masks in the order of their layout.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), between or Rounds()),
        *(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3)),
        nn.Linear(20, 2),
    )
    method = {"name": "lora", "include": ["4"]} | options
    method |= {} if method["name"] == "ssf" else {"rank": 2}
    return randomise(convpeft.attach(model, method.pop("name"), num_classes=2, **method), 5)


def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    splits = {
        name: array_split(name, rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8), rng.integers(0, 2, count))
        for name, count in (("train", COUNT), ("val", 9), ("test", 3))
    }
    return Dataset("made up", ("a", "b"), **splits)


def prepared(model: nn.Module, *, cached: bool = True, **keys: Any) -> Prepared:
    train = {"epochs": 3, "batch_size": 5, "lr": 0.05, "prefix_cache": "auto"} | keys
    augment = train.pop("augment", "none")
    recipe = make_recipe({"model": {"source": "x"}, "data": {"source": "x", "augment": augment}, "train": train})
    made = Prepared(recipe, dataset(), model, PREPROCESSING, ())
    if not cached:
        return made
    images = next(iter(made.batches["val"]))[0]
    half = torch.bfloat16 if recipe.train.precision == "bf16" else None
    prefix = Prefix(split_network(model, images, half=half), recipe.train.prefix_views, "")
    return Prepared(recipe, made.dataset, model, PREPROCESSING, (), prefix)


def train(
    run: Prepared, out: Path, *, resume: bool = False, watcher=None, save_every: float | None = None
) -> tuple[Fit, list[str]]:
    """Train; checkpoints take most of the time, and are written where a run is to go on."""
    torch.manual_seed(2)
    with serve(run, out, out / "checkpoints" / "last", resume=resume, watcher=watcher) as served:
        fitted = fit(
            run.model,
            served.train,
            served.val,
            run.recipe.train,
            class_weights=class_weights(run.dataset, run.recipe),
            checkpoints=out / "checkpoints" if resume or save_every is not None else None,
            resume=resume,
            watcher=watcher,
            save_every=save_every or 0.0,
        )
    return fitted, served.notes


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in adapter_tensors(model).items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], within: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.allclose(value, other[key], rtol=within, atol=within), key


def figures(fitted: Fit) -> list[tuple[float, ...]]:
    return [(row.train_loss, row.train_accuracy, row.val_loss, row.val_accuracy, row.lr) for row in fitted.history]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"accumulate": 3, "class_weights": "balanced", "label_smoothing": 0.1},
        {"optimizer": "sgd", "batch_size": 7},
        {"precision": "bf16"},
        {"layout": "channels_last"},
        {"augment": "flip", "prefix_views": 3},
        {"augment": "flip", "prefix_views": 4, "workers": 1},
    ],
    ids=str,
)
def test_training_from_features_is_training_from_images(tmp_path, keys):
    """The features of this network are exact in half precision, so that nothing but the order of sums may differ."""
    images, features = network(), network()
    expected, _ = train(prepared(images, cached=False, **keys), tmp_path / "images")
    fitted, notes = train(prepared(features, **keys), tmp_path / "features")
    within = 2e-2 if keys.get("precision") else 1e-5
    assert notes == []
    np.testing.assert_allclose(figures(fitted), figures(expected), rtol=within, atol=within)
    assert_same(state(features), state(images), within)


@pytest.mark.parametrize(
    "method",
    [{"name": "adalora", "target_rank": 1}, {"name": "mlae"}, {"name": "lora", "norm": "frozen"}],
    ids=lambda m: m["name"],
)
def test_methods_with_work_of_their_own_train_from_features(tmp_path, method):
    images, features = network(**method), network(**method)
    expected, _ = train(prepared(images, cached=False), tmp_path / "images")
    fitted, _ = train(prepared(features), tmp_path / "features")
    np.testing.assert_allclose(figures(fitted), figures(expected), rtol=1e-5, atol=1e-6)
    assert_same(state(features), state(images), 1e-5)


def test_features_that_are_rounded_change_little(tmp_path):
    images, features = network(nn.Identity()), network(nn.Identity())
    expected, _ = train(prepared(images, cached=False), tmp_path / "images")
    fitted, _ = train(prepared(features), tmp_path / "features")
    np.testing.assert_allclose(figures(fitted), figures(expected), rtol=5e-3)
    assert figures(fitted) != figures(expected)


def test_epoch_takes_the_views_in_turn(tmp_path):
    """Epochs 1 and 3 of two views see the same features, and those of the augmentation of epoch 1."""
    run = prepared(network(), augment="flip", prefix_views=2)
    assert run.prefix is not None
    with serve(run, tmp_path, tmp_path / "last", resume=False) as served:
        rows: list[Tensor] = []
        for epoch in (1, 2, 3):
            served.train.set_epoch(epoch)
            order = [(index, features) for features, _, index in served.train]
            where = torch.cat([index for index, _ in order]).argsort()
            rows.append(torch.cat([features for _, features in order])[where])
    run.batches["train"].set_epoch(1)
    images, _, index = next(iter(run.batches["train"]))
    expected = run.prefix.halves.prefix.forward(images)[0].flatten(1)
    torch.testing.assert_close(rows[0][index].float(), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("groups", "layout", "dimensions"), [(1, "auto", 2), (1, "channels_last", 4), (6, "auto", 4), (6, "contiguous", 2)]
)
def test_layout_of_features_is_changed_only_where_that_helps(tmp_path, groups, layout, dimensions):
    model = network()
    if groups > 1:
        model[6] = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.ReLU())
    with serve(prepared(model, layout=layout), tmp_path, tmp_path / "last", resume=False) as served:
        features, *_ = next(iter(served.train.loader))
        assert features.ndim == dimensions
        model.train()(features)


def test_features_come_in_the_order_of_the_images(tmp_path):
    run = prepared(network(), batch_size=7)  # 22 images: a last batch of one is left out
    images = prepared(network(), cached=False, batch_size=7).batches["train"]
    with serve(run, tmp_path, tmp_path / "last", resume=False) as served:
        for epoch in (1, 2):
            images.set_epoch(epoch)
            served.train.set_epoch(epoch)
            for (_, labels, index), (_, expected, where) in zip(served.train, images, strict=True):
                assert torch.equal(labels, expected)
                assert torch.equal(index, where)
        assert len(served.train) == len(images) == 3


class At:
    """Does something once, after so many batches; hears of features too."""

    def __init__(self, batch: int = 0, feature: int = 0) -> None:
        self.batch, self.feature, self.heard = batch, feature, []

    def prepare(self, what: str, done: int, total: int) -> None:
        self.heard.append((what, done, total))
        if self.feature and done >= self.feature:
            raise KeyboardInterrupt

    def step(self, *_: object) -> None:
        self.batch -= 1
        if self.batch == 0:
            raise KeyboardInterrupt

    def epoch(self, _: object) -> None:
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Tensor]:
    """What a training from features that nothing disturbs ends in."""
    model = network()
    train(prepared(model), tmp_path_factory.mktemp("whole"))
    return state(model)


@pytest.mark.promise("F01")
@pytest.mark.parametrize("batch", [2, 7])
def test_run_that_goes_on_takes_the_features_that_are_there(tmp_path, whole, batch):
    with pytest.raises(KeyboardInterrupt):
        train(prepared(network()), tmp_path / "cut", watcher=At(batch), save_every=0.0)
    assert (tmp_path / "cut" / "prefix-cache" / "train.f16").stat().st_size == COUNT * 6 * 8 * 8 * 2
    model, seen = network(), At()
    _, notes = train(prepared(model), tmp_path / "cut", resume=True, watcher=seen)
    assert notes == []
    assert {what for what, *_ in seen.heard} == {"checking features"}
    assert_same(state(model), whole)


def test_progress_is_told_over_all_views_and_splits(tmp_path):
    seen = At()
    train(prepared(network(), augment="flip", prefix_views=2), tmp_path, watcher=seen)
    assert seen.heard[-1] == ("computing features", 2 * COUNT + 9, 2 * COUNT + 9)


def test_run_stopped_while_features_are_computed_leaves_none(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(prepared(network()), tmp_path, watcher=At(feature=COUNT))
    assert not list(tmp_path.iterdir())


def test_finished_run_gives_the_room_back_and_keeps_the_facts(tmp_path):
    train(prepared(network()), tmp_path)
    assert [file.name for file in (tmp_path / "prefix-cache").iterdir()] == ["facts.json"]


def test_finished_run_that_goes_on_computes_nothing(tmp_path):
    train(prepared(network()), tmp_path, save_every=60.0)
    seen = At()
    train(prepared(network()), tmp_path, resume=True, watcher=seen)
    assert seen.heard == []


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, Wanted]]:
    folder, wanted = tmp_path_factory.mktemp("features") / "prefix-cache", want()
    write_features(folder, wanted, SETTINGS, maker(), told=None)
    return folder, wanted


def want(**options: Any) -> dict[str, Wanted]:
    split = options.pop("split", dataset().train)
    images = ImageBatches(split, PREPROCESSING, **({"batch_size": 5} | options))
    return {"train": Wanted(images, torch.tensor(split.labels), 1)}


def maker(between: nn.Module | None = None) -> Maker:
    model = network(between)
    images = next(iter(want()["train"].images))[0]
    return Maker(model, split_network(model, images), torch.device("cpu"), None)


def test_features_are_those_of_the_prefix_in_half_precision(written):
    folder, wanted = written
    images = torch.cat(list(wanted["train"].view(0)))
    expected = maker().halves.prefix.forward(images)[0].half().flatten(1)
    rows = read_features(folder, wanted, SETTINGS, told=None)["train"]
    torch.testing.assert_close(rows, expected, rtol=2e-3, atol=1e-6)
    assert rows.dtype == torch.float16
    assert torch.equal(rows, map_features(folder, wanted, SETTINGS["numbers"])["train"])


def test_file_is_never_written_to_by_training(written):
    folder, wanted = written
    before = (folder / "train.f16").read_bytes()
    rows = read_features(folder, wanted, SETTINGS, told=None)["train"]
    rows.zero_()
    batches = FeatureBatches(
        wanted["train"], map_features(folder, wanted, SETTINGS["numbers"])["train"], maker().halves
    )
    for features, *_ in batches:
        features.zero_()
    assert (folder / "train.f16").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "another"}, r"is stale \(other model\)"),
        ({"model": "another", "numbers": 3}, r"is stale \(other model, numbers\)"),
        ({"views": 2}, r"is stale \(other views\)"),
    ],
)
def test_features_of_other_settings_are_stale(written, settings, told):
    folder, wanted = written
    with pytest.raises(Unusable, match=told):
        read_features(folder, wanted, SETTINGS | settings, told=None)


def test_features_in_a_format_to_come_are_stale(tmp_path):
    facts = {"format": 2}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (tmp_path / "facts.json").write_text(json.dumps(facts | {"digest": digest}))
    with pytest.raises(Unusable, match=r"is stale \(it has another format\)"):
        read_features(tmp_path, want(), SETTINGS, told=None)


def test_features_of_other_images_are_stale(written):
    folder, wanted = written
    split = dataset().train
    changed = split.images.array.copy()  # pyright: ignore
    changed[3, 4, 5, 1] ^= 1
    other = array_split("train", changed, split.labels)
    with pytest.raises(Unusable, match=r"is stale \(other images\)"):
        read_features(folder, want(split=other), SETTINGS, told=None)
    with pytest.raises(Unusable, match=r"is stale \(other splits\)"):
        read_features(folder, wanted | {"val": wanted["train"]}, SETTINGS, told=None)


def flip(file: Path, where: int = 1000) -> None:
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Any] = {
    "a flipped bit": (lambda folder: flip(folder / "train.f16"), r"is damaged \(its features\)"),
    "cut off": (lambda folder: (folder / "train.f16").write_bytes(b"short"), r"is damaged \(its size\)"),
    "gone": (lambda folder: (folder / "train.f16").unlink(), "is missing"),
    "other facts": (lambda folder: flip(folder / "facts.json", 40), r"is damaged \(its description\)"),
    "no facts": (lambda folder: (folder / "facts.json").write_bytes(b"\xff[[["), r"is damaged \(its description\)"),
    "a list": (lambda folder: (folder / "facts.json").write_bytes(b"[1]"), r"is damaged \(its description\)"),
    "nothing": (lambda folder: (folder / "facts.json").unlink(), "is missing"),
}


@pytest.mark.promise("F05")
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_features_are_not_trusted(written, tmp_path, name):
    folder, wanted = written
    shutil.copytree(folder, tmp_path / "copy")
    damage, told = DAMAGES[name]
    damage(tmp_path / "copy")
    with pytest.raises(Unusable, match=f"^{told}$"):
        read_features(tmp_path / "copy", wanted, SETTINGS, told=None)


def test_features_of_another_place_are_found_where_they_are(written, tmp_path):
    folder, wanted = written
    shutil.copytree(folder, tmp_path / "moved")
    assert read_features(tmp_path / "moved", wanted, SETTINGS, told=None)["train"].shape == (COUNT, SETTINGS["numbers"])
    assert json.loads((folder / "facts.json").read_text())["splits"]["train"]["rows"] == COUNT


def test_digest_tells_of_every_tensor_and_option_before_the_cut():
    plain = maker().digest()
    assert maker().digest() == plain
    for index, name in ((0, "weight"), (0, "bias"), (1, "running_mean"), (1, "weight")):
        other = maker()
        tensors = {**other.model[index]._parameters, **other.model[index]._buffers}
        with torch.no_grad():
            tensors[name].view(-1)[0] += 1e-3
        assert other.digest() != plain, name
    other = maker()
    other.model[1].eps = 1e-3
    assert other.digest() != plain
    trained = maker()
    with torch.no_grad():
        for tensor in adapter_tensors(trained.model).values():
            tensor.add_(1)
    assert trained.digest() == plain


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1e6, "features are too large for half precision"),
        (1e-7, "features are too small for half precision"),
        (float("nan"), "features are too large for half precision"),
    ],
)
def test_features_that_half_precision_cannot_hold_are_not_kept(tmp_path, factor, told):
    refusing = maker(Scales(1.0))
    refusing.model[3].factor = factor
    with pytest.raises(CannotKeep, match=f"^{told}$"):
        write_features(tmp_path / "prefix-cache", want(), SETTINGS, refusing, told=None)
    assert not list(tmp_path.iterdir())
