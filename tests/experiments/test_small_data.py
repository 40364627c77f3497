"""Few images a class: the figures are those of an independent computation, and the page says what they say."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common.comparison import Comparison
from common.contrasts import Contrast, clustered_error
from scipy import stats

from convpeft.evaluation import SeedDifference
from experiment_runs import assert_names_no_folder, assert_tuned_alike, run_experiment

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "small_data"
RESULTS = EXPERIMENT / "results.json"
ARMS = ("probe", "bitfit", "lora", "full", "full, norms frozen")
SIZES, SEEDS, IMAGES = (5, 50), (0, 1, 2), 200
RATES = (0.001, 0.01, 0.1)
# Chances of being right by arm and size: the adapters are far better than full with few images and equal with many.
CHANCES = {
    ("probe", 5): 0.5,
    ("probe", 50): 0.5,
    ("bitfit", 5): 0.9,
    ("bitfit", 50): 0.9,
    ("lora", 5): 0.9,
    ("lora", 50): 0.9,
    ("full", 5): 0.4,
    ("full", 50): 0.9,
    ("full, norms frozen", 5): 0.4,
    ("full, norms frozen", 50): 0.9,
}


run = partial(run_experiment, EXPERIMENT)


def task(chances: dict[tuple[str, int], float] = CHANCES, groups: list[int] | None = None) -> dict[str, Any]:
    """A transfer with answers drawn by chance, in the form of the results."""
    rng = np.random.default_rng(0)
    runs: list[dict[str, Any]] = []
    for arm, size, seed in itertools.product(ARMS, SIZES, SEEDS):
        right = rng.random(IMAGES) < chances[arm, size]
        runs.append(
            {
                "arm": arm,
                "setting": size,
                "seed": seed,
                "lr": RATES[-1] if arm == "lora" else RATES[1],
                "epochs": 3,
                "best_epoch": 1,
                "images": {"train": 2 * size, "val": 10, "test": IMAGES},
                "train_digest": f"train {size} {seed}",
                "val_digest": f"val {size} {seed}",
                "val_accuracy": float(right.mean()) + 0.05,
                "test_accuracy": float(right.mean()),
                "test_auc": None,
                "right": np.packbits(right).tobytes().hex(),
                "trainable": 1234,
                "adapter_bytes": 10,
                "seconds": 30.0,
            }
        )
    tried = [
        {"arm": arm, "setting": size, "lr": rate, "val_accuracy": 0.5, "val_loss": 1.0, "seconds": 6.0}
        for arm, size, rate in itertools.product(ARMS, SIZES, RATES)
    ]
    return {
        "title": "Made up",
        "grid": "pneumonia.toml",
        "assign": [],
        "arms": list(ARMS),
        "planned": len(runs),
        "model": {"source": "cifar-resnet/20", "weights": "weights/some.safetensors"},
        "source": "npz:some.npz",
        "train": {"batch_size": 10, "optimizer": "adamw", "schedule": "cosine"},
        "trials": len(RATES),
        "tuning_seed": 1000,
        "ranges": {"train.lr": "0.001 to 0.1, logarithmic"},
        "base_digest": "b" * 64,
        "test_digest": "t" * 64,
        "test_groups": groups,
        "versions": {"torch": "0"},
        "runs": runs,
        "tried": tried,
    }


def right(content: dict[str, Any], arm: str, size: int) -> np.ndarray:
    """Which test images are right, (seeds, images), read without the experiment's own code."""
    rows = sorted((r for r in content["runs"] if (r["arm"], r["setting"]) == (arm, size)), key=lambda row: row["seed"])
    bits = [[int(bit) for byte in bytes.fromhex(row["right"]) for bit in f"{byte:08b}"][:IMAGES] for row in rows]
    return np.array(bits, dtype=float)


def test_difference_over_seeds_is_scipys_paired_t_interval():
    content = task()
    found = Comparison("made-up", content).contrast(["bitfit"], ["full"], 5)
    gaps = right(content, "bitfit", 5).mean(axis=1) - right(content, "full", 5).mean(axis=1)
    low, high = stats.t.interval(0.95, len(gaps) - 1, loc=gaps.mean(), scale=stats.sem(gaps))
    assert found.seeds.mean == pytest.approx(gaps.mean(), abs=1e-12)
    assert (found.seeds.low, found.seeds.high) == pytest.approx((low, high), abs=1e-6)


def test_interval_over_test_images_is_scipys_normal_interval():
    content = task()
    found = Comparison("made-up", content).contrast(["lora"], ["full"], 50)
    values = (right(content, "lora", 50) - right(content, "full", 50)).mean(axis=0)
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_images_of_a_patient_count_as_one_where_they_are_all_alike():
    rng = np.random.default_rng(1)
    patients = rng.normal(size=50)
    groups = np.repeat(np.arange(50), 4)
    together = clustered_error(np.repeat(patients, 4), groups.tolist())
    assert together == pytest.approx(stats.sem(patients), rel=1e-12)
    apart = clustered_error(np.repeat(patients, 4), None)
    assert apart == pytest.approx(together / 2, rel=0.02)


def test_groups_widen_the_interval_over_test_images():
    groups = [number // 4 for number in range(IMAGES)]
    chances = task()
    for row in chances["runs"]:  # the four images of a patient are right or wrong together
        bits = np.repeat(np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))[: IMAGES // 4], 4)
        row |= {"right": np.packbits(bits).tobytes().hex(), "test_accuracy": float(bits.mean())}
    alone = Comparison("made-up", chances).contrast(["lora"], ["full"], 5)
    grouped = Comparison("made-up", chances | {"test_groups": groups}).contrast(["lora"], ["full"], 5)
    assert grouped.seeds == alone.seeds
    assert grouped.high - grouped.low == pytest.approx(2 * (alone.high - alone.low), rel=0.03)


def test_some_arms_together_are_their_mean():
    content = task()
    made = Comparison("made-up", content)
    found = made.contrast(["bitfit", "lora"], ["full"], 5)
    expected = (right(content, "bitfit", 5) + right(content, "lora", 5)) / 2 - right(content, "full", 5)
    assert found.seeds.mean == pytest.approx(expected.mean(), abs=1e-12)


def test_change_is_the_lead_with_few_less_the_lead_with_many():
    content = task()
    few, many = ((right(content, "lora", n) - right(content, "full", n)).mean() for n in SIZES)
    found = Comparison("made-up", content).change(["lora"], ["full"])
    assert found.seeds.mean == pytest.approx(few - many, abs=1e-12)
    assert found.sign == 1


@pytest.mark.parametrize(
    ("seeds", "images", "sign"),
    [((0.1, 0.3), (0.1, 0.2), 1), ((0.1, 0.3), (-0.1, 0.5), 0), ((-0.1, 0.5), (0.1, 0.3), 0), ((-3, -1), (-2, -1), -1)],
)
def test_difference_counts_where_both_intervals_leave_zero_out(seeds, images, sign):
    difference = SeedDifference(sum(seeds) / 2, 0.1, *seeds, 0.1, 3)
    assert Contrast(difference, *images).sign == sign


def test_seed_that_one_arm_lacks_is_left_out():
    content = task()
    content["runs"] = [r for r in content["runs"] if (r["arm"], r["setting"], r["seed"]) != ("lora", 50, 2)]
    assert Comparison("made-up", content).seeds == [0, 1]


@pytest.mark.parametrize("change", ["another arm's images", "another seed's images"])
def test_arms_on_different_images_and_seeds_on_the_same_are_refused(change: str):
    content = task()
    for row in content["runs"]:
        if change == "another arm's images" and (row["arm"], row["seed"]) == ("lora", 1):
            row["train_digest"] = "others"
        if change == "another seed's images" and row["seed"] == 1:
            row["train_digest"] = f"train {row['setting']} 0"
    with pytest.raises(SystemExit, match="arms differ in their images, or seeds do not"):
        Comparison("made-up", content)


def page_of(content: dict[str, Any], folder: Path) -> str:
    (folder / "results.json").write_text(json.dumps({"budget": "small", "tasks": {"made-up": content}}))
    result = run("page", "--results", folder / "results.json", "--docs", folder / "docs")
    assert result.returncode == 0, result.stderr
    return (folder / "docs" / "small_data.md").read_text(encoding="utf-8")


def test_page_marks_claims_by_what_the_figures_say(tmp_path: Path):
    page = page_of(task(), tmp_path)
    rows = [line for line in page.splitlines() if line.startswith("| ")]

    def verdict(claim: str, size: str) -> str:
        return next(row for row in rows if row.startswith(f"| {claim} | Made up | {size} |")).split(" | ")[-1]

    beats = "The adapters are more accurate than full fine-tuning"
    assert verdict(beats, "5") == "held |"
    assert verdict(beats, "50") == "not held: within noise |"
    assert verdict("The adapters are more accurate than a new head alone", "50") == "held |"
    frozen = "The adapters are more accurate than full fine-tuning with frozen norms"
    assert [verdict(frozen, size) for size in ("5", "50")] == ["held |", "not held: within noise |"]
    lead = "The fewer the images, the larger the lead of the adapters over full fine-tuning"
    assert verdict(lead, "5 less 50") == "held |"
    worse = CHANCES | {("bitfit", 5): 0.05, ("lora", 5): 0.05}
    lost = page_of(task(worse), tmp_path)
    assert f"| {beats} | Made up | 5 | -" in lost
    assert "not held: the other way round" in lost
    assert "it beats `bitfit` and `lora`" in lost


def test_page_tells_means_rates_at_the_edge_sizes_and_provenance(tmp_path: Path):
    content = task(groups=[number // 2 for number in range(IMAGES)])
    page = page_of(content, tmp_path)
    accuracies = 100 * right(content, "full", 5).mean(axis=1)
    low, high = stats.t.interval(0.95, 2, loc=accuracies.mean(), scale=stats.sem(accuracies))
    cell = f"{accuracies.mean():.1f} % ± {accuracies.std(ddof=1):.1f} [{low:.1f}, {high:.1f}]"
    assert next(line for line in page.splitlines() if line.startswith("| `full` | 1,234 |")).split(" | ")[2] == cell
    assert "2 of 10 chosen learning rates are the lowest or the highest that was tried: `lora` at 5 a class" in page
    assert "| Made up | 5 | 10 | 10 | 3 | +5.0 |" in page
    assert "200 test images of 100 patients; no patient is in two splits" in page
    assert f"Base cifar-resnet/20 (some.safetensors): {'b' * 64}" in page
    assert f"test split: {'t' * 64}" in page
    assert "3 trials an arm and setting" in page
    assert "60 runs and trials took 18 minutes" in page
    assert "not testable here" in page
    assert "- Drawn digits: belongs to this budget and is not measured yet" in page
    plots = {path.stem for path in (tmp_path / "docs" / "small_data").iterdir()}
    assert plots == {"accuracy", "differences-made-up"}
    assert all(f"(small_data/{plot}.png)" in page for plot in plots)


def test_page_says_where_the_rate_of_full_fine_tuning_lies_at_an_end(tmp_path: Path):
    content = task()
    assert "The rate of `full` is at an end" not in page_of(content, tmp_path)
    for row in content["runs"]:
        if (row["arm"], row["setting"]) == ("full", 5):
            row["lr"] = RATES[0]
    page = page_of(content, tmp_path)
    (told,) = (line for line in page.splitlines() if "The rate of `full` is at an end" in line)
    assert told.startswith("- Made up, 5 images a class: ")
    assert "Training is short, 3 to 30 steps" in page
    assert "A run came before this one" not in page  # none did, in this budget


def test_results_of_another_budget_are_refused(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps({"budget": "medium", "tasks": {}}))
    result = run("run", "--budget", "small", "--results", tmp_path / "results.json", "--work", tmp_path / "work")
    assert result.returncode == 1
    assert "holds the medium budget. Give another --results for small." in result.stderr


@pytest.mark.slow
def test_small_budget_runs_and_goes_on_where_it_stopped(tmp_path: Path):
    pytest.importorskip("optuna")
    words = ("run", "--budget", "small", "--work", tmp_path / "work", "--results", tmp_path / "results.json")
    first = run(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "results.json").read_bytes()
    content = json.loads(before)["tasks"]["glyphs"]
    assert {(r["arm"], r["setting"], r["seed"]) for r in content["runs"]} == set(
        itertools.product(("probe", "lora", "full"), (1, 3), (0, 1))
    )
    assert all(r["images"]["train"] == r["images"]["val"] == 10 * r["setting"] for r in content["runs"])
    for row in content["runs"]:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))[: row["images"]["test"]]
        assert bits.mean() == pytest.approx(row["test_accuracy"], abs=1e-12)
        trials = [t for t in content["tried"] if (t["arm"], t["setting"]) == (row["arm"], row["setting"])]
        best = max(trials, key=lambda trial: (trial["val_accuracy"], -trial["val_loss"]))
        assert len(trials) == 2 and row["lr"] == best["lr"]
    assert str(tmp_path) not in before.decode()

    second = run(*words, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "trial" not in second.stdout and (tmp_path / "results.json").read_bytes() == before
    made = run("page", "--results", tmp_path / "results.json", "--docs", tmp_path / "docs")
    assert made.returncode == 0, made.stderr


@pytest.mark.skipif(not RESULTS.is_file(), reason="not measured yet")
def test_committed_results_are_whole_tuned_alike_and_name_no_folder():
    text = RESULTS.read_text(encoding="utf-8")
    assert_names_no_folder(text)
    content = json.loads(text)
    assert_tuned_alike(content)
    for each in content["tasks"].values():
        assert len(each["runs"]) == each["planned"]
