"""CoLoRA's experiment: the figures are those of an independent computation, and the page says what they say."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiment_runs import assert_names_no_folder, assert_tuned_alike, run_experiment

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "colora"
RESULTS = EXPERIMENT / "results.json"
ARMS = ("probe", "bitfit", "residual-parallel", "lora", "colora", "colora, merged each epoch", "full")
SETTINGS, FOLDS, RATES = ("10 a class", "all images"), (0, 1, 2), (0.001, 0.01, 0.1)
IMAGES = (150, 160, 170)  # of each fold
CHANCES = {"probe": 0.5, "bitfit": 0.7, "residual-parallel": 0.9, "lora": 0.7, "colora": 0.9, "full": 0.95}
MODULES = ("folds", "measures", "stability", "claims", "counts", "vgg16", "plan")


run = partial(run_experiment, EXPERIMENT, timeout=900)


@pytest.fixture(scope="module")
def experiment() -> Iterator[SimpleNamespace]:
    """The experiment's modules, which name each other as a script's do; nothing of them is left behind."""
    before = set(sys.modules)
    sys.path[:0] = [str(EXPERIMENT), str(EXPERIMENT.parent)]
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        del sys.path[:2]
        for name in set(sys.modules) - before:
            source = getattr(sys.modules[name], "__file__", None) or ""
            if Path(source).is_relative_to(EXPERIMENT.parent):
                del sys.modules[name]


def fold(number: int, chances: dict[str, float] = CHANCES, spread: dict[str, float] | None = None) -> dict[str, Any]:
    """One fold with answers drawn by chance, in the form of the results."""
    rng = np.random.default_rng(number)
    runs: list[dict[str, Any]] = []
    for arm, setting in itertools.product(ARMS, SETTINGS):
        chance = chances.get(arm, 0.9) + (spread or {}).get(arm, 0.0) * (number - 1)
        right = rng.random(IMAGES[number]) < chance
        runs.append(
            {
                "arm": arm,
                "setting": setting,
                "seed": number,
                "lr": RATES[-1] if arm == "lora" else RATES[1],
                "epochs": 3,
                "best_epoch": 1,
                "images": {"train": 40 + number, "val": 10, "test": IMAGES[number]},
                "train_digest": f"train {setting} {number}",
                "val_digest": f"val {setting} {number}",
                "val_accuracy": float(right.mean()) + 0.05,
                "test_accuracy": float(right.mean()),
                "test_auc": round(chance + 0.01 * rng.random(), 6),
                "right": np.packbits(right).tobytes().hex(),
                "trainable": 1000 if arm == "full" else 100,
                "adapter_bytes": 10,
                "epoch_seconds": (1.0 if arm == "full" else 0.5) + 0.01 * rng.random(),
                "seconds": 30.0,
            }
        )
    tried = [
        {"arm": arm, "setting": each, "lr": rate, "val_accuracy": 0.5 + rate, "val_loss": 1.0, "seconds": 6.0}
        for arm, each, rate in itertools.product(ARMS, SETTINGS, RATES)
    ]
    return {
        "title": "Made up",
        "grid": "oct.toml",
        "assign": [f"base.data.fold={number}"],
        "arms": list(ARMS),
        "planned": len(runs),
        "model": {"source": "mobilenetv1/0.75", "weights": "weights/some.safetensors", "image_size": 96},
        "source": "folder:some",
        "train": {"batch_size": 10, "optimizer": "adamw", "schedule": "cosine"},
        "trials": len(RATES),
        "tuning_seed": 1000,
        "ranges": {"train.lr": "0.001 to 0.1, logarithmic"},
        "base_digest": "b" * 64,
        "test_digest": f"{number}" * 64,
        "test_groups": [image // 2 for image in range(IMAGES[number])],
        "versions": {"torch": "0"},
        "runs": runs,
        "tried": tried,
    }


def written(folder: Path, **changes: Any) -> Path:
    tasks = {f"made-up-fold{number}": fold(number, **changes) for number in FOLDS}
    path = folder / "results.json"
    path.write_text(json.dumps({"budget": "small", "tasks": tasks}))
    return path


def right(task: dict[str, Any], arm: str, setting: str) -> np.ndarray:
    """Which test images are right, read without the experiment's own code."""
    row = next(r for r in task["runs"] if (r["arm"], r["setting"]) == (arm, setting))
    bits = [int(bit) for byte in bytes.fromhex(row["right"]) for bit in f"{byte:08b}"]
    return np.array(bits[: row["images"]["test"]], dtype=float)


def test_difference_over_folds_is_scipys_t_interval_of_their_means(experiment, tmp_path: Path):
    _, (found,) = experiment.folds.read_comparisons(written(tmp_path))
    gaps = [(right(fold(n), "colora", "10 a class") - right(fold(n), "lora", "10 a class")).mean() for n in FOLDS]
    low, high = stats.t.interval(0.95, len(gaps) - 1, loc=np.mean(gaps), scale=stats.sem(gaps))
    gap = found.contrast(["colora"], ["lora"], "10 a class")
    assert gap.seeds.mean == pytest.approx(np.mean(gaps), abs=1e-12)
    assert (gap.seeds.low, gap.seeds.high) == pytest.approx((low, high), abs=1e-6)


def test_interval_over_test_images_takes_each_patient_of_each_fold_once(experiment, tmp_path: Path):
    _, (found,) = experiment.folds.read_comparisons(written(tmp_path))
    gaps = [right(fold(n), "colora", "all images") - right(fold(n), "full", "all images") for n in FOLDS]
    values = np.concatenate(gaps)
    sums = (values - values.mean()).reshape(-1, 2).sum(axis=1)  # two images a patient, and even folds
    error = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values)
    gap = found.contrast(["colora"], ["full"], "all images")
    assert found.test_images == len(values) == sum(IMAGES)
    assert (gap.low, gap.high) == pytest.approx(stats.norm.interval(0.95, values.mean(), error), abs=1e-6)


def test_fold_that_an_arm_lacks_is_left_out(experiment, tmp_path: Path):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    runs = content["tasks"]["made-up-fold1"]["runs"]
    content["tasks"]["made-up-fold1"]["runs"] = [r for r in runs if r["arm"] != "lora"]
    path.write_text(json.dumps(content))
    _, (found,) = experiment.folds.read_comparisons(path)
    assert found.seeds == [0, 2]
    assert found.test_images == IMAGES[0] + IMAGES[2]
    assert found.contrast(["colora"], ["lora"], "10 a class").seeds.count == 2


def morgan_p(first: np.ndarray, second: np.ndarray, degrees: int) -> float:
    """The p-value of Pitman and Morgan's test: the correlation of sum and difference, of centred values."""
    total, gap = first + second, first - second
    r = float(total @ gap) / math.sqrt(float(total @ total) * float(gap @ gap))
    return 2 * stats.t.sf(abs(r) * math.sqrt(degrees / (1 - r * r)), degrees)


def test_interval_of_a_ratio_of_deviations_ends_where_the_test_does(experiment):
    rng = np.random.default_rng(3)
    cells = []
    for shift, scale in ((0.0, 1.0), (5.0, 30.0)):
        shared = rng.normal(size=6)
        pair = shared + rng.normal(size=6), shared + 0.5 * rng.normal(size=6)
        cells.append(tuple(shift + scale * side for side in pair))
    ratio = experiment.stability.deviation_ratio([(a.tolist(), b.tolist()) for a, b in cells])
    alike = [[side - side.mean() for side in pair] for pair in cells]
    alike = [[side / math.hypot(*pair[0], *pair[1]) for side in pair] for pair in alike]
    first, second = (np.concatenate([pair[side] for pair in alike]) for side in (0, 1))
    assert ratio.value == pytest.approx(first.std() / second.std(), rel=1e-12)
    for end in (ratio.low, ratio.high):
        assert morgan_p(first / end, second, len(first) - 3) == pytest.approx(0.05, abs=1e-9)
    assert ratio.detectable > 1


@pytest.mark.parametrize(("scale", "sign"), [(0.1, 1), (1.0, 0), (10.0, -1)])
def test_arm_varies_less_equally_or_more(experiment, scale: float, sign: int):
    rng = np.random.default_rng(0)
    other = rng.normal(size=8)
    ratio = experiment.stability.deviation_ratio([((scale * rng.normal(size=8)).tolist(), other.tolist())])
    assert ratio.sign == sign


def test_arm_that_does_not_vary_has_no_ratio(experiment):
    assert experiment.stability.deviation_ratio([([0.5] * 5, [0.1, 0.2, 0.3, 0.4, 0.5])]) is None
    assert experiment.stability.deviation_ratio([([0.5, 0.6], [0.1, 0.2])]) is None


@pytest.mark.parametrize(
    ("seeds", "images", "told"),
    [
        ((0.03, 0.05), (0.02, 0.06), "wins"),
        ((-0.05, -0.03), (-0.06, -0.02), "loses"),
        ((-0.01, 0.015), (-0.012, 0.018), "ties"),
        ((-0.01, 0.015), (-0.03, 0.018), "open"),
        ((-0.1, 0.2), (0.01, 0.05), "open"),
    ],
)
def test_outcome_is_won_lost_tied_or_open(experiment, seeds, images, told: str):
    contrast = experiment.folds.Contrast
    difference = type(experiment.folds.seed_difference([0.1, 0.2], [0.0, 0.0]))(sum(seeds) / 2, 0.1, *seeds, 0.1, 3)
    assert experiment.measures.outcome(contrast(difference, *images)) == told


def page_of(folder: Path, **changes: Any) -> str:
    result = run("page", "--results", written(folder, **changes), "--docs", folder / "docs")
    assert result.returncode == 0, result.stderr
    return (folder / "docs" / "colora.md").read_text(encoding="utf-8")


def verdict(page: str, claim: str, images: str) -> str:
    rows = [line for line in page.splitlines() if line.startswith(f"| {claim} | Made up | {images} |")]
    return rows[0].removesuffix(" |").split(" | ")[-1]


def test_page_marks_claims_by_what_the_figures_say(tmp_path: Path):
    page = page_of(tmp_path)
    for images in SETTINGS:
        assert verdict(page, "CoLoRA is more accurate than a new head alone", images) == "held"
        beside = "CoLoRA is more accurate than a 1 x 1 convolution beside each layer"
        assert verdict(page, beside, images) == "not held: within noise"
        assert verdict(page, "CoLoRA has a higher AUC than a new head alone", images) == "held"
        assert verdict(page, "CoLoRA has a higher AUC than full fine-tuning", images) == "not held: the other way round"
        assert verdict(page, "An epoch of CoLoRA takes less time than one of full fine-tuning", images) == "held"
    assert verdict(page, "CoLoRA trains far fewer parameters than full fine-tuning", "any") == "held"
    assert "CoLoRA wins against a k x k LoRA of its layers on Made up, 10 a class (+" in page
    assert page.count("not testable here") >= 5


def test_page_turns_with_the_figures(tmp_path: Path):
    page = page_of(tmp_path, chances=CHANCES | {"colora": 0.3}, spread={"colora": 0.2})
    for images in SETTINGS:
        assert verdict(page, "CoLoRA is more accurate than full fine-tuning", images) != "held"
    assert "CoLoRA wins" not in page
    lost = page_of(tmp_path, chances=CHANCES | {"colora": 0.3})
    claim = "CoLoRA is more accurate than full fine-tuning"
    assert verdict(lost, claim, "10 a class") == "not held: the other way round"
    assert "CoLoRA loses against a k x k LoRA of its layers on Made up, 10 a class (-" in lost


def test_page_tells_what_is_missing_rates_at_the_edge_and_provenance(tmp_path: Path):
    page = page_of(tmp_path)
    assert "Drawn digits: none of two draws that are planned are there." in page
    assert "Made up: 6 of 42 chosen learning rates are at an end of what was tried: `lora`" in page
    assert "480 test images of 240 patients, of whom none is in two splits" in page
    assert "| Made up | 10 a class | 40 to 42 | 10 | 3 | +5.0 |" in page
    assert f"Base mobilenetv1/0.75 (some.safetensors): {'b' * 64}" in page
    assert "0000000000000000, 1111111111111111, 2222222222222222" in page
    plots = {path.name for path in (tmp_path / "docs" / "colora").iterdir()}
    assert plots == {"differences-made-up.png", "draws-made-up.png"}
    assert all(f"(colora/{plot})" in page for plot in plots)


def test_same_results_give_the_same_bytes(tmp_path: Path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        page_of(tmp_path / folder)
    first, second = tmp_path / "first" / "docs", tmp_path / "second" / "docs"
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all((first / each).read_bytes() == (second / each).read_bytes() for each in files)


def test_committed_counts_of_vgg16_are_what_is_counted_and_published_but_for_one_label(experiment):
    rows = experiment.vgg16.count_rows()
    assert json.loads((EXPERIMENT / "vgg16.json").read_text()) == rows
    counted = {row["what"]: row["counted"] for row in rows}
    assert counted["the whole network"] == 15_583_812
    assert counted["the head alone"] == 869_124
    assert counted["LoRA of rank 8 by k x k convolutions (`lora`)"] == 1_164_548
    page = "\n".join(experiment.counts.count_blocks(rows))
    off = [line for line in page.splitlines() if line.endswith("| not held |")]
    assert len(off) == 1
    assert "pointwise factors alone | 0.91 | 2,499,332" in off[0]
    assert page.count("| held |") == 11


def test_every_budget_begins_with_the_first_draw_of_each_transfer(experiment):
    plan = experiment.plan
    names = [task.name.partition(plan.FOLD)[0] for task in plan.BUDGETS["medium"]]
    assert names[:2] == ["oct", "pneumonia"]
    assert plan.draws_planned("medium") == {"oct": ("Retinal OCT", 5), "pneumonia": ("PneumoniaMNIST", 5)}
    for task in plan.BUDGETS["medium"]:
        if plan.FOLD in task.name:
            number = task.name.rpartition(plan.FOLD)[2]
            assert task.assign[:2] == (f"grid.seeds=[{number}]", f"base.data.fold={number}")


@pytest.mark.parametrize("place", ["README.md", "page.py"])
def test_command_of_one_cell_names_a_setting_of_the_grid(place: str):
    grid = tomllib.loads((EXPERIMENT / "oct.toml").read_text())
    text = (EXPERIMENT / place).read_text()
    told = text.partition("--set 'grid.setting=")[2].partition("'")[0]
    assert tomllib.loads(f"setting = {told}")["setting"] == grid["grid"]["setting"][:1]


@pytest.mark.experiments
@pytest.mark.timeout(1800)
def test_small_budget_runs_and_goes_on_where_it_stopped(tmp_path: Path):
    pytest.importorskip("optuna")
    words = ("run", "--budget", "small", "--work", tmp_path / "work", "--results", tmp_path / "results.json")
    first = run(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "results.json").read_bytes()
    content = json.loads(before)["tasks"]["glyphs"]
    arms = ("probe", "lora", "colora", "colora, merged each epoch", "full")
    assert {(r["arm"], r["seed"]) for r in content["runs"]} == set(itertools.product(arms, (0, 1)))
    assert str(tmp_path) not in before.decode()
    second = run(*words, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "trial" not in second.stdout and (tmp_path / "results.json").read_bytes() == before
    made = run("page", "--results", tmp_path / "results.json", "--docs", tmp_path / "docs")
    assert made.returncode == 0, made.stderr


@pytest.mark.slow
def test_octmnist_is_taken_where_the_files_are_given(tmp_path: Path):
    """Files of the published form: uint8 images, labels (count, 1), 28 and 224 pixels, four classes."""
    pytest.importorskip("optuna")
    rng = np.random.default_rng(0)
    for name, side in (("octmnist", 28), ("octmnist_224", 224)):
        arrays = {}
        for split, count in (("train", 24), ("val", 12), ("test", 12)):
            labels = np.arange(count, dtype=np.uint8) % 4
            noise = rng.integers(0, 60, (count, side, side))
            arrays[f"{split}_images"] = (noise + 60 * labels[:, None, None]).astype(np.uint8)
            arrays[f"{split}_labels"] = labels[:, None]
        np.savez(tmp_path / f"{name}.npz", **arrays)
    told = run(
        *("run", "--budget", "octmnist", "--data", tmp_path, "--work", tmp_path / "work"),
        *("--results", tmp_path / "results.json", "--workers", "1", "--set", 'base.model={source="small-cnn"}'),
        *("--set", 'arm=[{name="lora", method={name="lora"}}, {name="colora", method={name="colora"}}]'),
        *("--set", "grid.seeds=[0]", "--set", "tune.trials=1"),
        *("--set", "grid.setting=[{data={per_class=3, val_per_class=2}, train={epochs=1}}]"),
    )
    assert told.returncode == 0, told.stderr
    tasks = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert {name: task["source"] for name, task in tasks.items()} == {
        "octmnist": "npz:octmnist.npz",
        "octmnist-224": "npz:octmnist_224.npz",
    }
    for task in tasks.values():
        assert [run["images"] for run in task["runs"]] == [{"train": 12, "val": 8, "test": 12}] * 2


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_committed_results_are_tuned_alike_and_name_no_folder():
    text = RESULTS.read_text(encoding="utf-8")
    assert_names_no_folder(text)
    content = json.loads(text)
    assert_tuned_alike(content)
    for each in content["tasks"].values():
        for row in each["runs"]:
            trials = [t for t in each["tried"] if (t["arm"], t["setting"]) == (row["arm"], row["setting"])]
            assert row["lr"] == max(trials, key=lambda trial: (trial["val_accuracy"], -trial["val_loss"]))["lr"]
