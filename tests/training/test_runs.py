"""A run leaves everything in its directory, does the same again from the same seed, and never looks at test labels."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convpeft
from convpeft.adapter_file import read_adapter
from convpeft.errors import AdapterFileError, DataError, ModelError, OptionError, RunError
from convpeft.evaluation import classification_metrics, predict_logits
from convpeft.evaluation.inference import evaluate_split, load_classifier
from convpeft.training import make_recipe, prepare_run, read_recipe
from convpeft.training.preparing import batches, class_weights, load_recipe_data, settle
from convpeft.training.results import Result
from convpeft.training.runs import open_run, run_prepared
from tiny import CLASSES, draw, files_below, recipe, write_images, write_splits


def quick(values: dict, *, resume: bool = False, watcher=None) -> Result:
    """Train and save without figures and report, which take most of a tiny run's time."""
    with open_run(make_recipe(values), resume=resume) as prepared:
        return run_prepared(prepared, Path(values["out"]), resume=resume, watcher=watcher)


def adapter_bytes(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "adapter").iterdir()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "pictures")


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Result:
    """One whole run, written out."""
    return convpeft.train(recipe(images, tmp_path_factory.mktemp("runs") / "run"))


def test_run_leaves_all_its_files(run):
    assert files_below(run.out) == {
        "recipe.toml",
        "metrics.json",
        "metrics.csv",
        "predictions.csv",
        "confusion.csv",
        "report.html",
        "plots/curves.png",
        "plots/confusion.png",
        "plots/calibration.png",
        "checkpoints/last/state.json",
        "checkpoints/last/state.safetensors",
        "checkpoints/last.previous/state.json",
        "checkpoints/last.previous/state.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }


def test_recipe_in_the_directory_is_the_recipe_of_the_run(run):
    assert make_recipe(read_recipe(run.out / "recipe.toml")) == run.recipe


def test_metrics_hold_what_a_reader_asks_for(run):
    facts = json.loads((run.out / "metrics.json").read_text())
    assert facts["classes"] == list(CLASSES)
    assert facts["images"] == {"train": 12, "val": 6, "test": 6}
    assert facts["test"]["accuracy"] == run.test.accuracy
    assert facts["parameters"]["trainable"] == run.count.trainable
    assert facts["recipe"]["train"]["lr"] == 0.01
    assert facts["best_epoch"]["epoch"] == run.fit.best.epoch
    assert facts["adapter_bytes"] == sum(file.stat().st_size for file in (run.out / "adapter").iterdir())
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["duplicates_across_splits"] == 0


def test_metrics_csv_has_a_line_an_epoch(run):
    with (run.out / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["val_accuracy"]) for row in rows] == [row.val_accuracy for row in run.fit.history]


def test_predictions_and_confusion_agree_with_the_metrics(run):
    with (run.out / "predictions.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {row["image"] for row in rows} == set(run.dataset.test.ids)
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == run.test.accuracy
    for row in rows:  # an id is the file's path, and its folder is its class
        assert Path(row["image"]).parts[-2] == row["label"]
    with (run.out / "confusion.csv").open() as handle:
        table = list(csv.reader(handle))
    counts = np.array([[int(cell) for cell in line[1:4]] for line in table[1:4]])
    expected = [[sum((r["label"], r["predicted"]) == (a, b) for r in rows) for b in CLASSES] for a in CLASSES]
    assert counts.tolist() == expected


def test_report_is_one_file_with_the_recipe_and_the_versions(run):
    page = (run.out / "report.html").read_text(encoding="utf-8")
    assert "small-cnn" in page
    assert torch.__version__ in page
    assert "<script src" not in page
    assert 'href="http' not in page


def test_plots_are_pictures(run):
    for file in (run.out / "plots").iterdir():
        with Image.open(file) as image:
            assert min(image.size) > 100


def test_run_learns(run):
    assert run.test.accuracy > 0.6


def test_model_of_the_result_is_ready_to_be_used(run):
    assert not any(module.training for module in run.model.modules())


@pytest.mark.promise("C05")
def test_reloaded_adapter_gives_the_identical_confusion_matrix(run):
    predictions, classes = evaluate_split(load_classifier(run.out), run.dataset, "test")
    again = classification_metrics(predictions.probabilities, predictions.labels, classes)
    assert np.array_equal(again.confusion, run.test.confusion)
    assert again.accuracy == run.test.accuracy


@pytest.mark.promise("C05")
def test_adapter_file_builds_its_base_again_and_gives_identical_logits(run):
    model = convpeft.from_adapter(run.out / "adapter")
    served = batches(run.dataset, "test", load_classifier(run.out).preprocessing, run.recipe)
    assert np.array_equal(predict_logits(model, served).logits, run.predictions.logits)


def test_adapter_file_builds_its_base_without_touching_the_random_state(run):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    convpeft.from_adapter(run.out)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.promise("C11")
def test_same_seed_gives_the_same_adapter_bytes(images, run, tmp_path):
    torch.manual_seed(999)
    quick(recipe(images, tmp_path / "again"))
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(run.out)


@pytest.mark.promise("C11")
def test_another_seed_gives_another_adapter(images, run, tmp_path):
    quick(recipe(images, tmp_path / "other", train__seed=1))
    assert adapter_bytes(tmp_path / "other") != adapter_bytes(run.out)


def test_interrupted_run_ends_in_the_same_adapter_bytes(images, run, tmp_path):
    class Stop:
        def step(self, *_):
            pass

        def epoch(self, epoch):
            if epoch.epoch == 2:
                raise KeyboardInterrupt

    values = recipe(images, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        quick(values, watcher=Stop())
    assert not (tmp_path / "cut" / "adapter").exists()
    torch.manual_seed(999)
    quick(values, resume=True)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(run.out)


def test_run_stopped_before_its_first_checkpoint_is_resumed_from_the_start(images, run, tmp_path):
    class Stop:
        def step(self, *_):
            raise KeyboardInterrupt

        def epoch(self, _):
            pass

    values = recipe(images, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        quick(values, watcher=Stop())
    quick(values, resume=True)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(run.out)


def test_run_that_was_moved_is_resumed_where_it_is(images, run, tmp_path):
    shutil.copytree(run.out, tmp_path / "moved")
    quick(recipe(images, tmp_path / "moved"), resume=True)
    assert adapter_bytes(tmp_path / "moved") == adapter_bytes(run.out)


def test_resuming_with_another_recipe_is_refused(images, run):
    with pytest.raises(RunError, match="was started with another recipe"):
        quick(recipe(images, run.out, train__lr=0.5), resume=True)


def test_test_labels_choose_nothing(tmp_path):
    """Scrambling the labels of the test split leaves every byte of the adapter as it is."""
    honest, scrambled = write_splits(tmp_path / "honest"), tmp_path / "scrambled"
    shutil.copytree(honest, scrambled)
    folders = [scrambled / "test" / name for name in CLASSES]
    folders[0].rename(scrambled / "aside")
    folders[1].rename(folders[0])
    folders[2].rename(folders[1])
    (scrambled / "aside").rename(folders[2])
    one, other = quick(recipe(honest, tmp_path / "a")), quick(recipe(scrambled, tmp_path / "b"))
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    assert one.fit.best.val_loss == other.fit.best.val_loss
    assert one.test.accuracy != other.test.accuracy  # the scrambling did something


def test_test_images_choose_nothing(tmp_path):
    one, other = write_splits(tmp_path / "one"), tmp_path / "other"
    shutil.copytree(one, other)
    for file in (other / "test").rglob("*.png"):
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(file)
    quick(recipe(one, tmp_path / "a")), quick(recipe(other, tmp_path / "b"))
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")


@pytest.mark.promise("B05")
def test_images_in_two_splits_are_counted_and_told(tmp_path):
    data = write_splits(tmp_path / "data")
    for number in range(3):
        shutil.copy(data / "train" / "low" / f"{number}.png", data / "test" / "low" / f"leak{number}.png")
    result = convpeft.train(recipe(data, tmp_path / "run", train__epochs=1))
    assert result.duplicates == 3
    assert json.loads((result.out / "metrics.json").read_text())["duplicates_across_splits"] == 3
    said = (result.out / "report.html").read_text(encoding="utf-8")
    assert "pixel for pixel: 3 in train and test. The test figures are too good." in said


def test_directory_that_holds_something_is_not_written_into(images, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"exists already\. Give another --out, or --resume"):
        quick(recipe(images, tmp_path))
    assert files_below(tmp_path) == {"notes.txt"}


def test_file_in_the_way_is_not_replaced(images, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        quick(recipe(images, tmp_path / "file"))


def test_empty_directory_is_used(images, tmp_path):
    (tmp_path / "run").mkdir()
    quick(recipe(images, tmp_path / "run", train__epochs=1))
    assert (tmp_path / "run" / "adapter").is_dir()


def test_directory_without_a_recipe_is_not_resumed(images, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds no recipe\.toml, so there is no run to resume\. Give another --out"):
        quick(recipe(images, tmp_path), resume=True)


def test_report_that_finds_no_room_says_how_to_write_it_later(images, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convpeft.training.results.write_report", fail)
    with pytest.raises(RunError) as caught:
        convpeft.train(recipe(images, tmp_path / "run", train__epochs=1))
    out = tmp_path / "run"
    assert str(caught.value) == (
        f"{out}: cannot write figures and report (No space left on device). "
        f"Free space and write them with `convpeft train --resume {out}`."
    )
    read_adapter(out)
    monkeypatch.undo()
    convpeft.train(recipe(images, out, train__epochs=1), resume=True)
    assert (out / "report.html").is_file()


def test_model_that_tells_no_preprocessing_is_refused(images, tmp_path, monkeypatch):
    """Every model of load_model tells it; this is for one that comes from elsewhere some day."""
    monkeypatch.setattr("convpeft.training.preparing.load_model", lambda *_, **__: nn.Linear(2, 2))
    with pytest.raises(
        OptionError, match=r"'small-cnn' tells no preprocessing\. Load it with convpeft\.load_model"
    ) as caught:
        prepare_run(make_recipe(recipe(images, tmp_path / "run")))
    assert "\n" not in str(caught.value)


def test_directory_that_cannot_be_written_is_named(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: cannot be written \(Not a directory\)"):
        quick(recipe(images, tmp_path / "file" / "run"))


@pytest.mark.promise("B06")
@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"method__name": "lroa"}, OptionError, "Did you mean 'lora'?"),
        ({"method__rnak": 3}, OptionError, "Did you mean 'rank'?"),
        ({"method__rank": 0}, OptionError, "rank=0"),
        ({"method__alpha": float("nan")}, OptionError, "alpha=nan"),
        ({"method__include": ["nothing"]}, OptionError, "nothing"),
        ({"data__augment": "flop"}, OptionError, "Did you mean 'flip'?"),
        ({"data__source": "folder:nowhere"}, DataError, "nowhere"),
        ({"data__source": "fodler:x"}, OptionError, "Did you mean 'folder:PATH'?"),
        ({"data__fold": 1}, OptionError, "fold=1"),
        ({"model__source": "small-cn"}, ModelError, "Did you mean 'small-cnn'?"),
        ({"model__weights": "nowhere.safetensors"}, ModelError, "nowhere.safetensors"),
        ({"model__head": "nowhere"}, OptionError, "nowhere"),
        ({"model__keep_head": True}, ModelError, "the model has 10 outputs, the data 3 classes"),
        ({"model__image_size": 32}, ModelError, "Set model.image_size"),
        ({"train__epochs": 0}, OptionError, "train.epochs=0"),
        ({"warm_start": "nowhere"}, AdapterFileError, "nowhere: holds no adapter"),
        ({"method__rank": 4096, "method__rank_policy": "error"}, OptionError, "takes at most"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_bad_recipe_is_refused_and_nothing_is_written(images, tmp_path, keys, error, words):
    with pytest.raises(error) as caught:
        quick(recipe(images, tmp_path / "run", **keys))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_typo_in_an_option_is_found_before_the_data_is_read(tmp_path):
    with pytest.raises(OptionError, match="has no option 'rnak'"):
        quick(recipe(tmp_path / "no such folder", tmp_path / "run", method__rnak=3))


@pytest.mark.promise("B02")
def test_damaged_picture_is_named_before_anything_is_written(tmp_path):
    data = write_splits(tmp_path / "data")
    for split in ("val", "test"):
        file = data / split / "low" / "1.png"
        content = bytearray(file.read_bytes())
        content[60:80] = bytes(20)  # in the middle, where header and end are whole
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"low/1\.png"):
        quick(recipe(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_balanced_class_weights_are_inverse_frequencies_with_mean_one(tmp_path):
    data = write_splits(tmp_path / "data")
    for file in sorted((data / "train" / "low").iterdir())[1:]:
        file.unlink()
    checked = make_recipe(recipe(data, tmp_path / "run", train__class_weights="balanced"))
    dataset = load_recipe_data(checked)
    weights = class_weights(dataset, checked)
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.75, 3.0, 0.75])  # 9 images: 4, 1, 4
    assert float(weights[torch.from_numpy(dataset.train.labels)].mean()) == pytest.approx(1.0)


def test_equal_class_weights_are_none(images, tmp_path):
    checked = make_recipe(recipe(images, tmp_path / "run"))
    assert class_weights(load_recipe_data(checked), checked) is None


@pytest.mark.promise("B04")
def test_last_batch_of_one_image_is_left_out_of_training_only(tmp_path):
    data = write_splits(tmp_path / "data", count=3)  # 9 images a split
    prepared = prepare_run(make_recipe(recipe(data, tmp_path / "run", train__batch_size=4)))
    assert [len(labels) for _, labels, _ in prepared.batches["train"]] == [4, 4]
    assert sum(len(labels) for _, labels, _ in prepared.batches["val"]) == 9
    assert sum(len(labels) for _, labels, _ in prepared.batches["test"]) == 9


def test_splits_together_keep_no_more_in_memory_than_the_limit(images, tmp_path, monkeypatch):
    """12, 6 and 6 images of 784 bytes: after the training split there is room for one more of the others."""
    monkeypatch.setattr("convpeft.training.preparing.CACHE_BYTES", (12 + 6 + 5) * 784)
    prepared = prepare_run(make_recipe(recipe(images, tmp_path / "run")))
    kept = {name: served.dataset.cached_bytes for name, served in prepared.batches.items()}
    assert kept == {"train": 12 * 784, "val": 6 * 784, "test": 0}


def test_images_that_are_not_kept_in_memory_give_the_same_adapter(images, run, tmp_path, monkeypatch):
    monkeypatch.setattr("convpeft.training.preparing.CACHE_BYTES", 0)
    quick(recipe(images, tmp_path / "run"))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(run.out)


@pytest.mark.promise("B02")
def test_damaged_picture_is_named_before_training_where_images_are_not_kept_in_memory(tmp_path, monkeypatch):
    data = write_splits(tmp_path / "data")
    file = data / "val" / "low" / "1.png"
    content = bytearray(file.read_bytes())
    content[60:80] = bytes(20)
    file.write_bytes(content)
    monkeypatch.setattr("convpeft.training.preparing.CACHE_BYTES", 0)
    with pytest.raises(DataError, match=r"1 of 36 pictures cannot be read: val/low/1\.png"):
        quick(recipe(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_only_training_images_are_augmented(images, tmp_path):
    prepared = prepare_run(make_recipe(recipe(images, tmp_path / "run", data__augment="light")))
    plain = prepare_run(make_recipe(recipe(images, tmp_path / "run")))
    changed = {
        name: not all(torch.equal(a[0], b[0]) for a, b in zip(served, plain.batches[name], strict=True))
        for name, served in prepared.batches.items()
    }
    assert changed == {"train": True, "val": False, "test": False}


def test_dry_preparation_writes_nothing(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_run(make_recipe(recipe(images, tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


def test_warm_start_goes_on_from_the_adapter(images, run, tmp_path):
    values = recipe(images, tmp_path / "warm", warm_start=str(run.out), train__epochs=1, train__lr=1e-12)
    values["method"] = {}
    result = quick(values)
    before, after = read_adapter(run.out).tensors, read_adapter(tmp_path / "warm").tensors
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[key], value, atol=1e-6) for key, value in before.items())
    assert result.recipe.method.options["rank"] == 2


def test_warm_start_tells_its_method_in_recipe_and_file(images, run, tmp_path):
    values = recipe(images, tmp_path / "probe", method__name="probe", train__epochs=1)
    del values["method"]["rank"]
    quick(values)
    values = recipe(images, tmp_path / "warm", warm_start=str(tmp_path / "probe"), train__epochs=1)
    del values["method"]
    quick(values)
    assert make_recipe(read_recipe(tmp_path / "warm" / "recipe.toml")).method.name == "probe"
    assert read_adapter(tmp_path / "warm").config["method"] == "probe"


def test_warm_start_that_was_stopped_is_resumed(images, run, tmp_path):
    values = recipe(images, tmp_path / "warm", warm_start=str(run.out), train__epochs=1)
    del values["method"]
    quick(values)
    before = adapter_bytes(tmp_path / "warm")
    quick(values, resume=True)
    quick(read_recipe(tmp_path / "warm" / "recipe.toml"), resume=True)
    assert adapter_bytes(tmp_path / "warm") == before


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "bitfit"}, "method.name='bitfit': the adapter to go on from"),
        ({"rank": 5}, "method.rank=5: the adapter to go on from"),
        ({"include": ["conv"]}, "method.include=['conv']: the adapter to go on from"),
    ],
)
def test_warm_start_with_another_method_is_refused(images, run, tmp_path, method, words):
    values = recipe(images, tmp_path / "warm", warm_start=str(run.out)) | {"method": method}
    with pytest.raises(OptionError) as caught:
        settle(make_recipe(values))
    assert words in str(caught.value)


@pytest.mark.promise("C14")
def test_warm_start_matches_classes_by_name(run, tmp_path):
    """The data knows two of the adapter's classes only, so their positions differ."""
    data = write_splits(tmp_path / "data", names=("low", "middle"))
    values = recipe(data, tmp_path / "warm", warm_start=str(run.out), train__epochs=1, train__lr=1e-12)
    del values["method"]
    result = quick(values)
    assert result.dataset.classes == CLASSES
    assert result.test.accuracy > 0.6  # as the adapter itself; with labels by position it would be near 0
    assert read_adapter(tmp_path / "warm").config["classes"] == list(CLASSES)


def test_warm_start_with_an_unknown_class_is_refused(run, tmp_path):
    rng = np.random.default_rng(0)
    data = write_images(tmp_path / "data", names=("low", "middle"))
    (data / "other").mkdir()
    for number in range(8):
        Image.fromarray(draw("high", rng)).save(data / "other" / f"{number}.png")
    values = recipe(data, tmp_path / "warm", warm_start=str(run.out))
    del values["method"]
    with pytest.raises(OptionError, match=r"knows no class 'other' \(1 such\)"):
        quick(values)


def test_images_in_memory_train_as_well(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": value
        for split in ("train", "val", "test")
        for kind, value in (
            ("images", np.stack([draw(name, rng) for name in CLASSES for _ in range(4)])),
            ("labels", np.repeat([0, 1, 2], 4)[:, None].astype(np.uint8)),
        )
    }
    np.savez(tmp_path / "tiny.npz", **arrays)
    result = quick(recipe(tmp_path, tmp_path / "run", data__source=f"npz:{tmp_path / 'tiny.npz'}"))
    assert result.dataset.classes == ("0", "1", "2")
    assert result.test.n == 12


@pytest.mark.parametrize("method", ["bitfit", "full", "probe"])
def test_every_method_for_this_network_trains_and_reloads(images, tmp_path, method):
    values = recipe(images, tmp_path / "run", method__name=method, train__epochs=1)
    del values["method"]["rank"]
    result = quick(values)
    predictions, _ = evaluate_split(load_classifier(tmp_path / "run"), result.dataset, "test")
    assert np.array_equal(predictions.logits, result.predictions.logits)


def test_method_that_finds_no_layer_says_so(images, tmp_path):
    """small-cnn has no norms; with a new head there is something to train all the same."""
    values = recipe(images, tmp_path / "run", method__name="norm-tuning", train__epochs=1)
    del values["method"]["rank"]
    assert quick(values).count.layers.keys() == {"classifier"}


def test_seed_of_the_recipe_orders_the_training_images(run):
    preprocessing = load_classifier(run.out).preprocessing
    orders = []
    for seed in (0, 1, 0):
        seeded = run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update={"seed": seed})})
        served = batches(run.dataset, "train", preprocessing, seeded)
        orders.append(torch.cat([index for _, _, index in served]).tolist())
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


@pytest.mark.promise("F07")
def test_second_run_into_a_directory_is_refused(images, tmp_path):
    checked = make_recipe(recipe(images, tmp_path / "run"))
    with open_run(checked), pytest.raises(RunError, match="trains into it"), open_run(checked, resume=True):
        pass
