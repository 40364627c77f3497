"""LoRA-C and robustness: the figures are those of an independent computation, and the page says what they say."""

from __future__ import annotations

import base64
import itertools
import json
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import convpeft
from convpeft.data.corruptions import ALL, COMMON, EXTRA
from convpeft.models import load_model
from experiment_runs import assert_names_no_folder, assert_tuned_alike, run_experiment

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "robustness"
RESULTS = EXPERIMENT / "results.json"
SEEDS, CLASSES, PER_CLASS, PARTS = (0, 1, 2), 10, 20, 10
LABELS = [number % CLASSES for number in range(CLASSES * PER_CLASS)]
RATES = (0.001, 0.01, 0.1)
NAMED = "lora-c, setting rk, rank 4, alpha_per_rank 2"
CHOSEN = "lora-c, setting r, rank 1, alpha_per_rank 0.5"  # by its trials, but bad
LORA = {
    f"lora-c, setting {setting}, rank {rank}, alpha_per_rank {ratio:g}": (setting, rank, ratio)
    for setting, rank, ratio in itertools.product(("rk", "r"), (1, 4), (0.5, 2.0))
} | {"lora-c, beyond": ("rk", 4, 8.0)}
AUGMIX = ("full, augmix", "lora-c, augmix")
ARMS = ("probe", "scratch", "norm-tuning", "full", *LORA, *AUGMIX)
# Chances of being right: (clean, corrupted). Ratio 2 is far better than 0.5, settings are alike.
CHANCES = (
    dict.fromkeys(ARMS, (0.8, 0.5))
    | {arm: (0.5, 0.2) for arm, (_, _, ratio) in LORA.items() if ratio == 0.5}
    | {"scratch": (0.4, 0.1), "full, augmix": (0.8, 0.9)}
)


run = partial(run_experiment, EXPERIMENT, timeout=900)


def form_images() -> list[tuple[str, int]]:
    """Corruption and test image of every answer, in their order, by the rule written out anew."""
    place = {number: LABELS[:number].count(label) for number, label in enumerate(LABELS)}
    return [
        (name, number)
        for at, name in enumerate(ALL)
        for severity in (1, 2, 3, 4, 5)
        for number in range(len(LABELS))
        if (place[number] - at - 2 * severity) % PARTS == 0
    ]


FORMS = form_images()


def task(chances: dict[str, tuple[float, float]] = CHANCES, arms: tuple[str, ...] = ARMS) -> dict[str, Any]:
    """A task with answers drawn by chance, in the form of the results."""
    rng = np.random.default_rng(0)
    runs: list[dict[str, Any]] = []
    for arm, seed in itertools.product(arms, SEEDS):
        clean, corrupted = rng.random(len(LABELS)) < chances[arm][0], rng.random(len(FORMS)) < chances[arm][1]
        setting, rank, ratio = LORA.get(arm, LORA[NAMED])
        method: dict[str, Any] = {"name": arm.split(",")[0]}
        if arm.startswith("lora-c"):
            method |= {"norm": "adapt", "setting": setting, "rank": rank, "alpha": ratio * rank}
        runs.append(
            {
                "arm": arm,
                "seed": seed,
                "setting": "clean",
                "method": method,
                "augment": "augmix" if arm in AUGMIX else "flip",
                "lr": RATES[-1] if arm == "full" else RATES[1],
                "epochs": 4,
                "best_epoch": 3,
                "images": {"train": 100, "val": 50, "test": len(LABELS)},
                "train_digest": f"train {seed}",
                "val_digest": f"val {seed}",
                "val_accuracy": 0.6,
                "test_accuracy": float(clean.mean()),
                "right": np.packbits(clean).tobytes().hex(),
                "corrupted": base64.b64encode(np.packbits(corrupted).tobytes()).decode(),
                "trainable": {"rk": 3000, "r": 1000}[setting] * rank if arm.startswith("lora-c") else 270_000,
                "adapter_bytes": 10,
                "seconds": 50.0,
                "measuring_seconds": 10.0,
            }
        )
    tried = [
        {
            "arm": arm,
            "setting": "clean",
            "lr": rate,
            "val_accuracy": 0.7 if arm == CHOSEN else 0.5,
            "val_loss": 1.0,
            "seconds": 60.0,
        }
        for arm, rate in itertools.product(arms, RATES)
    ]
    return {
        "title": "Made up",
        "grid": "cifar.toml",
        "assign": [],
        "arms": list(arms),
        "planned": len(runs),
        "model": {"source": "cifar-resnet/20"},
        "weights": "resnet20_tinyimagenet32",
        "source": "npz:images.npz",
        "images": "cifar10",
        "test_groups": None,
        "train": {"batch_size": 25, "optimizer": "adamw", "schedule": "cosine"},
        "pool": 1000,
        "equal": None,
        "trials": len(RATES),
        "tuning_seed": 1000,
        "ranges": {"train.lr": "0.001 to 0.1, logarithmic"},
        "base_digest": "b" * 64,
        "test_digest": "t" * 64,
        "corrupted": {
            "origin": "regenerated",
            "digest": "c" * 64,
            "names": list(ALL),
            "parts": PARTS,
            "labels": LABELS,
        },
        "versions": {"torch": "0"},
        "runs": runs,
        "tried": tried,
    }


def corrupted(content: dict[str, Any], arm: str, names: tuple[str, ...]) -> np.ndarray:
    """Which answers under some corruptions are right, (seeds, answers), read without the experiment's own code."""
    rows = sorted((row for row in content["runs"] if row["arm"] == arm), key=lambda row: row["seed"])
    bits = [[int(bit) for byte in base64.b64decode(row["corrupted"]) for bit in f"{byte:08b}"] for row in rows]
    kept = [place for place, (name, _) in enumerate(FORMS) if name in names]
    return np.array(bits, dtype=float)[:, kept]


def page_of(content: dict[str, Any], folder: Path) -> str:
    (folder / "results.json").write_text(json.dumps({"budget": "medium", "tasks": {"cifar10": content}}))
    result = run("page", "--results", folder / "results.json", "--docs", folder / "docs")
    assert result.returncode == 0, result.stderr
    return (folder / "docs" / "robustness.md").read_text(encoding="utf-8")


def row_of(page: str, claim: str, measure: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {claim}") and f"| {measure} |" in line)
    return [part.strip() for part in line.strip("| ").split(" | ")]


def test_an_image_has_one_form_of_each_severity_by_five_corruptions():
    cells = runpy.run_path(str(EXPERIMENT / "cells.py"))["cells_of"](np.repeat(np.arange(3), 40), 20, ALL)
    of_image: dict[int, list[tuple[str, int]]] = {}
    for form, images in cells.items():
        assert len(images) == 6  # two of each class
        for image in images.tolist():
            of_image.setdefault(image, []).append(form)
    assert set(of_image) == set(range(120))
    for forms in of_image.values():
        assert sorted(severity for _, severity in forms) == [1, 2, 3, 4, 5]
        assert len({name for name, _ in forms}) == 5


def test_page_marks_claims_by_what_the_figures_say(tmp_path: Path):
    page = page_of(task(), tmp_path)
    for measure in ("clean", "mCA-19"):
        assert row_of(page, "alpha/r = 2 is better than 0.5 (mean of 4 pairs)", measure)[-1] == "held"
        assert row_of(page, "alpha/r = 2 is better than 8", measure)[-1] == "not held: within noise"
        assert row_of(page, "At equal rank, setting `rk`", measure)[-1] == "not held: within noise"
    assert row_of(page, "LoRA-C is more robust than the standard network", "mCA-19")[-1] == "held"
    assert row_of(page, "LoRA-C is more robust than norm-tuning", "mCA-19")[-1] == "not held: within noise"
    beaten = row_of(page, "LoRA-C is more robust than full fine-tuning with AugMix", "mCA-19")
    assert beaten[-1] == "not held: the other way round"
    assert page.count("not testable here") == 5
    assert "1 of the learning rates chosen is the lowest or the highest" in page
    assert "more robust than `scratch`, within noise of `probe`, `norm-tuning` and `full` and less robust than" in page
    chosen = "LoRA-C as validation chooses it is more robust than"
    assert row_of(page, f"{chosen} full fine-tuning", "mCA-19")[-1] == "not held: the other way round †"


def test_difference_has_scipys_interval_over_seeds_and_over_images_as_clusters(tmp_path: Path):
    content = task()
    names = (*COMMON, *EXTRA)
    gaps = corrupted(content, NAMED, names) - corrupted(content, "scratch", names)
    means = gaps.mean(axis=1)
    low, high = (100 * end for end in stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means)))
    images = np.array([image for name, image in FORMS if name in names])
    centred = gaps.mean(axis=0) - gaps.mean()
    sums = np.array([centred[images == image].sum() for image in range(len(LABELS))])
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / centred.size
    reach = stats.norm.ppf(0.975) * error
    found = row_of(page_of(content, tmp_path), "LoRA-C is more robust than the standard network", "mCA-19")
    assert found[2] == f"{100 * means.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
    assert found[3] == f"[{100 * (means.mean() - reach):+.1f}, {100 * (means.mean() + reach):+.1f}]"


@pytest.mark.parametrize(
    ("differing", "verdict"),
    [(0, "not held: the same adapter, 0 of 1,234 trained"), (7, "not tested: 7 of 1,234 trained")],
)
def test_page_says_whether_settings_of_equal_size_are_one_adapter(tmp_path: Path, differing: int, verdict: str):
    page = page_of(task() | {"equal": {"ranks": [1, 3], "numbers": 1234, "differing": differing}}, tmp_path)
    told = next(
        line for line in page.splitlines() if line.startswith("| At equal size (rank 1 of `rk`, rank 3 of `r`)")
    )
    assert f"{verdict} numbers differ" in told
    assert ("At equal size neither" in page) == (differing == 0)


def test_page_tells_levels_edges_images_and_provenance(tmp_path: Path):
    content = task()
    page = page_of(content, tmp_path)
    levels = 100 * corrupted(content, "full", ("rain",)).mean(axis=1)
    low, high = stats.t.interval(0.95, 2, loc=levels.mean(), scale=stats.sem(levels))
    line = next(line for line in page.splitlines() if line.startswith("| `full` | 270,000 |"))
    assert line.split(" | ")[5] == f"{levels.mean():.1f} [{low:.1f}, {high:.1f}]"
    assert f"1 of {len(ARMS)} chosen learning rates is the lowest or the highest that was tried: `full` (0.1)" in page
    assert "Each of the 100 forms (corruption and severity) is that of 20 test images, one in ten of" in page
    assert "2,000 answers a run" in page
    assert f"Base cifar-resnet/20 (resnet20_tinyimagenet32): {'b' * 64}" in page
    assert f"corrupted, regenerated: {'c' * 64}" in page
    assert "3 trials an arm and setting" in page
    plots = {path.name for path in (tmp_path / "docs" / "robustness").iterdir()}
    assert plots == {f"cifar10-{name}.png" for name in ("arms", "corruptions", "sizes")}
    assert all(f"(robustness/{plot})" in page for plot in plots)


def test_page_says_what_is_planned_where_seeds_are_missing(tmp_path: Path):
    content = task()
    content["runs"] = [row for row in content["runs"] if row["seed"] < 2 and (row["arm"], row["seed"]) != ("full", 1)]
    page = page_of(content, tmp_path)
    told = f"{3 * len(ARMS)} runs are planned, {2 * len(ARMS) - 1} are done so far, and {len(ARMS)} are used here"
    assert told in page
    assert "Seeds: 0." in page
    assert "held |" not in page.replace("not held: within noise |", "")


def test_page_says_when_the_base_knows_the_images(tmp_path: Path):
    page = page_of(task() | {"weights": "resnet20_cifar10"}, tmp_path)
    assert "trained on CIFAR-10 itself: no other was at hand, so nothing is transferred" in page


@pytest.mark.parametrize("change", ["another arm's images", "another seed's images"])
def test_arms_on_different_images_and_seeds_on_the_same_are_refused(tmp_path: Path, change: str):
    content = task()
    for row in content["runs"]:
        if change == "another arm's images" and (row["arm"], row["seed"]) == ("full", 1):
            row["val_digest"] = "others"
        if change == "another seed's images" and row["seed"] == 1:
            row["train_digest"] = "train 0"
    (tmp_path / "results.json").write_text(json.dumps({"budget": "medium", "tasks": {"cifar10": content}}))
    result = run("page", "--results", tmp_path / "results.json", "--docs", tmp_path / "docs")
    assert result.returncode == 1
    assert "arms differ in their images, or seeds do not" in result.stderr


def test_settings_at_equal_size_are_one_adapter_bit_for_bit():
    outputs: list[torch.Tensor] = []
    for setting, rank in (("rk", 1), ("r", 3)):
        torch.manual_seed(0)
        model = load_model("cifar-resnet/20").eval()
        options = {"setting": setting, "rank": rank, "alpha": 2.0 * rank}
        convpeft.attach(model, "lora-c", generator=torch.Generator().manual_seed(0), **options)
        before = model(torch.ones(2, 3, 32, 32))
        for name, tensor in model.named_parameters():
            if name.endswith(".up"):
                torch.nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(tensor.numel()))
        outputs.append(model(torch.ones(2, 3, 32, 32)))
        assert not torch.equal(outputs[-1], before)
    assert torch.equal(*outputs)


@pytest.mark.experiments
@pytest.mark.timeout(1800)
def test_small_budget_runs_goes_on_where_it_stopped_and_makes_a_cell_again(tmp_path: Path):
    pytest.importorskip("optuna")
    words = ("--budget", "small", "--work", tmp_path / "work")
    first = run("run", *words, "--results", tmp_path / "results.json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "results.json").read_bytes()
    content = json.loads(before)["tasks"]["glyphs"]
    assert len(content["runs"]) == content["planned"] == 2 * len(content["arms"])
    assert str(tmp_path) not in before.decode()
    for row in content["runs"]:
        assert len(base64.b64decode(row["corrupted"])) == 1000 // 8
        trials = [each for each in content["tried"] if each["arm"] == row["arm"]]
        best = max(trials, key=lambda each: (each["val_accuracy"], -each["val_loss"]))
        assert len(trials) == 2 and row["lr"] == best["lr"]

    second = run("run", *words, "--results", tmp_path / "results.json", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "measured" not in second.stdout and (tmp_path / "results.json").read_bytes() == before
    made = run("page", "--results", tmp_path / "results.json", "--docs", tmp_path / "docs")
    assert made.returncode == 0, made.stderr

    again = run("cell", "full, augmix", "--seed", "1", "--budget", "small", "--work", tmp_path / "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    row = next(row for row in content["runs"] if (row["arm"], row["seed"]) == ("full, augmix", 1))
    assert f"corrupted {row['corrupted'][:24]}" in again.stdout


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_committed_results_are_tuned_alike_and_name_no_folder():
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert_tuned_alike(content)
    runs = [run for each in content["tasks"].values() for run in each["runs"]]
    packed = [run.pop("corrupted") for run in runs]  # letters that may spell anything
    assert all(packed)
    text = json.dumps(content)
    assert_names_no_folder(text)
