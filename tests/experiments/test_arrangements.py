"""Which arrangement pays: figures are those of an independent computation, and the page says what they say."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common.comparison import Comparison
from scipy import stats

import convpeft
from convpeft.models import load_model
from experiment_runs import assert_names_no_folder, assert_tuned_alike, run_experiment

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "arrangements"
RESULTS = EXPERIMENT / "results.json"
GRIDS = {name: tomllib.loads((EXPERIMENT / f"{name}.toml").read_text()) for name in ("bottleneck", "resnet20")}
ARMS = tuple(arm["name"] for arm in GRIDS["resnet20"]["arm"])
SEEDS, IMAGES, RATES = (0, 1, 2), 300, (0.001, 0.01, 0.1)
NAMES = ("letters-v15", "letters-v1", "pneumonia", "cifar10")
OWN = ("arms", "bottleneck", "claims", "effects", "plan", "scores")
NEAR = 0.12  # how far from the budget an arm may be that is said to be at it: ranks are whole numbers


@pytest.fixture(scope="module")
def own() -> Iterator[SimpleNamespace]:
    """The experiment's modules, under their own names only while they are needed: others have a plan too."""
    before = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    sys.path.insert(0, str(EXPERIMENT))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in OWN})
    sys.path.remove(str(EXPERIMENT))
    for name in OWN:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def chance(arm: str) -> float:
    """Of being right: parallel far above serial, copies as good as groups, CPD below the matrix."""
    if arm.startswith("parallel"):
        return 0.9
    return {"probe": 0.3, "bitfit": 0.6, "full": 0.8, "lora": 0.9}.get(arm, 0.5)


def task(name: str, chances: dict[str, float] | None = None, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """A transfer with answers drawn by chance, in the form of the results."""
    rng = np.random.default_rng(NAMES.index(name))
    runs: list[dict[str, Any]] = []
    for seed, arm in itertools.product(seeds, ARMS):
        right = rng.random(IMAGES) < (chances or {}).get(arm, chance(arm))
        runs.append(
            {
                "arm": arm,
                "setting": 20,
                "seed": seed,
                "lr": RATES[1],
                "epochs": 3,
                "best_epoch": 1,
                "images": {"train": 64, "val": 32, "test": IMAGES},
                "train_digest": f"train {seed}",
                "val_digest": f"val {seed}",
                "val_accuracy": float(right.mean()),
                "test_accuracy": float(right.mean()),
                "test_auc": None,
                "right": np.packbits(right).tobytes().hex(),
                "trainable": {"probe": 100, "full": 90_000}.get(arm, 1_100),
                "adapter_bytes": 10,
                "seconds": 30.0,
            }
        )
    tried = [
        {"arm": arm, "setting": 20, "lr": rate, "val_accuracy": 0.5, "val_loss": 1.0, "seconds": 6.0}
        for arm, rate in itertools.product(ARMS, RATES)
    ]
    letters = name.startswith("letters")
    return {
        "title": f"Made up {name}",
        "grid": "bottleneck.toml" if letters else "resnet20.toml",
        "assign": [],
        "arms": list(ARMS),
        "planned": len(ARMS) * len(SEEDS),
        "model": {"source": "bottleneck:v1" if letters else "cifar-resnet/20", "weights": "some.safetensors"},
        "source": "npz:some.npz",
        "train": {"batch_size": 10, "optimizer": "adamw", "schedule": "cosine"},
        "trials": len(RATES),
        "tuning_seed": 1000,
        "ranges": {"train.lr": "0.001 to 0.1, logarithmic"},
        "base_digest": "b" * 64,
        "test_digest": ("letters" if letters else name) * 8,
        "test_groups": None,
        "versions": {"torch": "0"},
        "runs": runs,
        "tried": tried,
    }


def right(content: dict[str, Any], *arms: str) -> np.ndarray:
    """The share of some arms that is right, (seeds, images), read without the experiment's own code."""
    found = []
    for arm in arms:
        rows = sorted((r for r in content["runs"] if r["arm"] == arm), key=lambda row: row["seed"])
        found.append([[int(b) for byte in bytes.fromhex(r["right"]) for b in f"{byte:08b}"][:IMAGES] for r in rows])
    return np.array(found, dtype=float).mean(axis=0)


def test_mean_effect_counts_transfers_alike_and_adds_up_their_variances(own: SimpleNamespace):
    contents = [task(name) for name in NAMES[1:]]
    found = own.effects.mean_effect([Comparison("x", each) for each in contents], ["lora", "cp"], ["full"])
    gaps = [right(each, "lora", "cp") - right(each, "full") for each in contents]
    by_seed = np.mean([gap.mean(axis=1) for gap in gaps], axis=0)
    low, high = stats.t.interval(0.95, len(SEEDS) - 1, loc=by_seed.mean(), scale=stats.sem(by_seed))
    assert found.seeds.mean == pytest.approx(by_seed.mean(), abs=1e-12)
    assert (found.seeds.low, found.seeds.high) == pytest.approx((low, high), abs=1e-6)
    error = np.sqrt(sum(stats.sem(gap.mean(axis=0)) ** 2 for gap in gaps)) / len(gaps)
    expected = stats.norm.interval(0.95, loc=by_seed.mean(), scale=error)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)


def test_change_of_effect_is_paired_by_seed_and_image(own: SimpleNamespace):
    first, second = task("letters-v15"), task("letters-v1")
    found = own.effects.change_of_effect(Comparison("a", first), Comparison("b", second), ["lora"], ["full"])
    gaps = (right(first, "lora") - right(first, "full")) - (right(second, "lora") - right(second, "full"))
    assert found.seeds.mean == pytest.approx(gaps.mean(), abs=1e-12)
    low, high = stats.norm.interval(0.95, loc=gaps.mean(), scale=stats.sem(gaps.mean(axis=0)))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_change_between_networks_with_other_test_images_is_refused(own: SimpleNamespace):
    first, second = (Comparison(name, task(name)) for name in ("letters-v15", "cifar10"))
    with pytest.raises(SystemExit, match="not tested on the same images"):
        own.effects.change_of_effect(first, second, ["lora"], ["full"])


def test_scores_follow_the_formula_of_the_decathlon(own: SimpleNamespace):
    contents = [task(name) for name in NAMES[1:]]
    found = {each.arm: each for each in own.scores.scores_of([Comparison("x", each) for each in contents])}
    for arm in ("lora", "full"):
        for place in range(len(SEEDS)):
            points = 0.0
            for content in contents:
                most = 2 * (1 - right(content, "full").mean())
                points += 1000 * (max(0.0, most - (1 - right(content, arm)[place].mean())) / most) ** 2
            assert found[arm].scores[place] == pytest.approx(points, rel=1e-9)
    assert found["full"].lead.mean == 0


def test_share_of_time_is_a_geometric_mean_with_scipys_interval(own: SimpleNamespace):
    ratios = [0.5, 0.8, 0.6, 0.7]
    found, logs = own.scores.share_of(ratios), np.log(ratios)
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert found.mean == pytest.approx(stats.gmean(ratios))
    assert (found.low, found.high) == pytest.approx((np.exp(low), np.exp(high)), abs=1e-6)


@pytest.mark.parametrize(("grid", "source"), [("bottleneck", "bottleneck:v15"), ("resnet20", "cifar-resnet/20")])
def test_arms_at_the_budget_train_as_many_parameters_as_the_arm_that_sets_it(own: SimpleNamespace, grid, source):
    sizes: dict[str, int] = {}
    for arm in GRIDS[grid]["arm"]:
        if arm["name"] in (*own.arms.AT_BUDGET, "probe"):
            model = load_model(source, pretrained=False)
            options = {key: value for key, value in arm["method"].items() if key != "name"}
            convpeft.attach(model, arm["method"]["name"], num_classes=5, **options)
            sizes[arm["name"]] = convpeft.count(model).trainable
    budget = sizes["parallel, group"] - sizes["probe"]
    for arm in own.arms.AT_BUDGET:
        assert sizes[arm] - sizes["probe"] == pytest.approx(budget, rel=NEAR), arm


def test_every_arm_is_in_both_grids_and_is_told_about(own: SimpleNamespace):
    names = [[arm["name"] for arm in grid["arm"]] for grid in GRIDS.values()]
    assert names[0] == names[1] == list(own.arms.ABOUT)
    grouped = {own.arms.HEAD, own.arms.BIASES, own.arms.WHOLE, own.arms.LESS_CONV1, own.arms.LESS_CONV2}
    assert set(names[0]) == grouped | set(own.arms.SEPARATE) | set(own.arms.ALTERED)


def test_two_forms_of_the_network_differ_in_the_place_of_the_stride_alone(own: SimpleNamespace):
    v1, v15 = own.bottleneck.v1(7), own.bottleneck.v15(7)
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (v1, v15)]
    assert shapes[0] == shapes[1]
    images = torch.zeros(2, 1, 28, 28)
    assert v1(images).shape == v15(images).shape == (2, 7)
    strides = [
        {name for name, layer in net.named_modules() if getattr(layer, "stride", None) == (2, 2)} for net in (v1, v15)
    ]
    both = {"conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"}
    assert strides[0] == {"layer2.0.conv1", "layer3.0.conv1"} | both
    assert strides[1] == {"layer2.0.conv2", "layer3.0.conv2"} | both
    assert own.arms.arm_on("letters-v1", own.arms.STRIDED) == own.arms.arm_on("letters-v15", own.arms.BESIDE)


run = partial(run_experiment, EXPERIMENT)


def page_of(folder: Path, tasks: dict[str, dict[str, Any]], cost: dict[str, Any] | None = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"budget": "medium", "tasks": tasks}))
    if cost is not None:
        (folder / "cost.json").write_text(json.dumps(cost))
    result = run("page", "--results", folder, "--docs", folder / "docs")
    assert result.returncode == 0, result.stderr
    return (folder / "docs" / "arrangements.md").read_text(encoding="utf-8")


def verdict(page: str, claim: str) -> str:
    """The last cell of the first row of a claim."""
    return next(line for line in page.splitlines() if line.startswith(f"| {claim}")).split(" | ")[-1].removesuffix(" |")


def cost(ratio: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arms = {arm: {"seconds": 1.0, "ratios": (ratio * rng.uniform(0.95, 1.05, 5)).tolist()} for arm in ARMS}
    return {"letters-v15": {"images": 96, "arms": arms}, "cifar10": {"images": 96, "arms": arms}}


def test_page_marks_claims_by_what_the_figures_say(tmp_path: Path):
    page = page_of(tmp_path / "a", {name: task(name) for name in NAMES}, cost(0.5))
    assert verdict(page, "Parallel is more accurate than serial") == "held"
    assert verdict(page, "In parallel, group convolution is") == "not held: within noise"
    assert verdict(page, "CPD, TKD and CPD-TKD are") == "not held: the other way round"
    assert verdict(page, "The arms at the budget are more accurate than a new head alone") == "held"
    assert verdict(page, "Parallel leads serial by more in v1.5") == "not held: within noise"
    assert verdict(page, "T_PEFT << T_FFT") == "not held: 0 of 26 (arms on 2 networks) surely below 0.1"
    assert verdict(page, "T_PEFT < T_FFT") == "held: 26 of 26 (arms on 2 networks) surely below 1"
    assert verdict(page, "The order of arrangements on ResNet-50").startswith("not testable here: ")
    better = {arm: 0.99 for arm in ARMS if arm not in ("full", "probe")}
    turned = page_of(tmp_path / "b", {name: task(name, better) for name in NAMES}, cost(0.05))
    assert verdict(turned, "Parallel is more accurate than serial") == "not held: within noise"
    assert verdict(turned, "The arms at the budget are more accurate than full fine-tuning") == "held"
    assert verdict(turned, "Each arm at the budget has a higher decathlon score") == "held"
    assert verdict(turned, "T_PEFT << T_FFT") == "held: 26 of 26 (arms on 2 networks) surely below 0.1"
    worse = {arm: 0.2 for arm in ARMS if arm.startswith("parallel")}
    lost = page_of(tmp_path / "c", {name: task(name, worse) for name in NAMES})
    assert verdict(lost, "Parallel is more accurate than serial") == "not held: the other way round"
    assert verdict(lost, "T_PEFT << T_FFT") == "not measured yet; `run.py cost` does"


def test_page_tells_the_mean_of_the_arms_by_transfer_the_steps_and_the_run_before(tmp_path: Path, own: SimpleNamespace):
    tasks = {name: task(name) for name in NAMES}
    page = page_of(tmp_path, tasks)
    for name, against in itertools.product(NAMES, ("full", "probe")):
        gaps = 100 * (right(tasks[name], *own.arms.AT_BUDGET) - right(tasks[name], against)).mean(axis=1)
        low, high = stats.t.interval(0.95, len(SEEDS) - 1, loc=gaps.mean(), scale=stats.sem(gaps))
        told = f"Made up {name} {gaps.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        assert (told in page) == (name != "letters-v1")  # which is no part of the mean
    assert "training is short, 21 steps" in page
    assert page.count("A run came before this one") == 1


def test_page_is_the_same_bytes_twice_and_shows_its_plots(tmp_path: Path):
    tasks = {name: task(name) for name in NAMES}
    pages = [page_of(tmp_path / side, tasks, cost(0.7)) for side in "ab"]
    assert pages[0] == pages[1]
    plots = [{path.name: path.read_bytes() for path in (tmp_path / s / "docs/arrangements").iterdir()} for s in "ab"]
    assert set(plots[0]) == {"differences.png", "scores.png"}
    assert plots[0] == plots[1]
    assert all(f"(arrangements/{name})" in pages[0] for name in plots[0])


def test_page_of_a_run_that_was_cut_off_says_what_is_planned(tmp_path: Path):
    cut = task("cifar10", seeds=(0,))
    cut["runs"] = cut["runs"][:5]  # not every arm has its first seed
    tasks = {"letters-v15": task("letters-v15"), "pneumonia": task("pneumonia", seeds=(0, 1)), "cifar10": cut}
    page = page_of(tmp_path, tasks)
    assert "- CIFAR-10: belongs to this budget and is not measured yet" in page
    assert "- EMNIST letters (v1): belongs to this budget and is not measured yet" in page
    planned = len(ARMS) * len(SEEDS)
    assert f"Made up pneumonia: {planned} runs are planned, {planned - len(ARMS)} are done so far" in page


def test_page_shows_a_second_form_that_lacks_arms(tmp_path: Path):
    tasks = {name: task(name) for name in ("letters-v15", "pneumonia", "cifar10", "letters-v1")}
    v1 = tasks["letters-v1"]
    v1["runs"] = [run for run in v1["runs"] if run["arm"] not in ("lora", "cp", "probe")]
    page = page_of(tmp_path, tasks)
    assert f"Made up letters-v1: {len(ARMS) * len(SEEDS)} runs are planned, {(len(ARMS) - 3) * len(SEEDS)} are" in page
    row = next(line for line in page.splitlines() if line.startswith("| `cp` | 5"))
    assert row.split(" | ")[4] == "-"
    assert verdict(page, "Parallel leads serial by more in v1.5") == "not held: within noise"


def test_page_of_one_seed_claims_nothing(tmp_path: Path):
    page = page_of(tmp_path, {name: task(name, seeds=(0,)) for name in NAMES})
    assert verdict(page, "Parallel is more accurate than serial") == "not held: within noise"


@pytest.mark.experiments
@pytest.mark.timeout(1800)
def test_small_budget_runs_goes_on_and_gives_a_cell_again(tmp_path: Path):
    pytest.importorskip("optuna")
    words = ("--budget", "small", "--work", tmp_path / "work")
    first = run("run", *words, "--results", tmp_path, timeout=900)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "results.json").read_bytes()
    tasks = json.loads(before)["tasks"]
    assert set(tasks) == {"letters-v15", "letters-v1"}
    for each in tasks.values():
        assert {(r["arm"], r["seed"]) for r in each["runs"]} == set(itertools.product(ARMS, (0, 1)))
        assert len(each["runs"]) == each["planned"]
    assert str(tmp_path) not in before.decode()
    second = run("run", *words, "--results", tmp_path)
    assert second.returncode == 0 and (tmp_path / "results.json").read_bytes() == before
    timed = run("cost", *words, "--results", tmp_path)
    assert timed.returncode == 0, timed.stderr
    assert set(json.loads((tmp_path / "cost.json").read_text())["letters-v15"]["arms"]) == set(ARMS)
    made = run("page", "--results", tmp_path, "--docs", tmp_path / "docs")
    assert made.returncode == 0, made.stderr
    again = run("cell", *words, "--task", "letters-v15", "--arm", "cp", "--seed", "1")
    assert again.returncode == 0, again.stderr
    (cell,) = json.loads((tmp_path / "work" / "small" / "cells.json").read_text())["tasks"]["letters-v15"]["runs"]
    known = next(r for r in tasks["letters-v15"]["runs"] if (r["arm"], r["seed"]) == ("cp", 1))
    clock = {"seconds": 0, "epoch_seconds": 0}  # times are never the same again; all else is
    assert cell | clock == known | clock


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_committed_results_are_tuned_alike_and_name_no_folder():
    text = RESULTS.read_text(encoding="utf-8")
    assert_names_no_folder(text)
    content = json.loads(text)
    assert_tuned_alike(content)
