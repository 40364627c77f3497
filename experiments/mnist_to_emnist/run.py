"""Document 000 on real data: `all --data ROOT` trains everything, `page` writes the page from the results.

What is in the results is not trained again, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share
KINDS = ("grid", "base", "target", "tune", "run")


class Results:
    """The lines of the results, one a trained cell; each is on disk as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    def keys(self) -> set[tuple[object, ...]]:
        fields = ("kind", "target", "arm", "rank", "seed", "lr")
        return {tuple(line[field] for field in fields) for line in self.of("tune") + self.of("run")}

    def sort(self, grid: dict[str, Any]) -> None:
        """Write the lines in the order of the grid, whatever the order in which they came."""
        arms = [arm["name"] for arm in grid["arms"]]

        def place(line: dict[str, Any]) -> tuple[Any, ...]:
            order: list[Any] = [KINDS.index(line["kind"])]
            if "target" in line:
                order.append(grid["targets"].index(line["target"]))
            if "arm" in line:
                order += [arms.index(line["arm"]), line["rank"] or 0, line["seed"], line["lr"]]
            return tuple(order)

        self.lines.sort(key=place)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)
        self.path.write_text(text, encoding="utf-8")


def run_all(grid: dict[str, Any], recipe: dict[str, Any], *, root: str, work: Path, out: Path, workers: int) -> None:
    """Train the base, choose the learning rates on validation, and train every arm with every seed."""
    from cells import Setting, describe_target, use_one_thread

    setting = Setting(grid, root, work / "base.safetensors")
    results = Results(out)
    if not setting.weights.exists():
        train_base(setting, recipe, work)
    if not results.of("grid"):
        results.add({"kind": "grid", "grid": grid, "versions": versions(), "notes": []})
    if not results.of("base"):
        results.add(describe_base(work / "base", setting.weights))
    elif results.of("base")[0]["sha256"] != sha256(setting.weights):
        sys.exit(f"{out}: was made with another base than {setting.weights}. Give another --out, or that base.")
    for target in grid["targets"]:
        if target not in [line["target"] for line in results.of("target")]:
            results.add(describe_target(setting, target))
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come; this one trained the base with all it has
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=use_one_thread) as pool:
        _do(pool, setting, results, _tuning_cells(grid, results))
        for _ in range(grid["extensions"]):
            _do(pool, setting, results, _tuning_cells(grid, results, extend=True))
        _do(pool, setting, results, _real_cells(grid, results))
    results.sort(grid)


def train_base(setting: Any, recipe: dict[str, Any], work: Path) -> None:
    """Run the recipe of the base unless its directory is there, and merge it into one file."""
    from convpeft.commands.using import merge_run
    from convpeft.training.runs import train

    if not (work / "base" / "metrics.json").exists():
        told = {
            "out": str(work / "base"),
            "data": {**recipe["data"], "source": setting.source(setting.grid["base_data"])},
        }
        train(recipe | told)
    merge_run(work / "base", setting.weights, weights=None)


def describe_base(run: Path, weights: Path) -> dict[str, Any]:
    """The line of the results that says what the base is; its recipe without folders of this machine."""
    from convpeft.fingerprints import fingerprint
    from convpeft.models import load_model

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    recipe = {key: value for key, value in metrics["recipe"].items() if key != "out"}
    source = recipe["data"]["source"]
    recipe["data"]["source"] = source if source.startswith("glyphs:") else source.partition(":")[0] + ":"
    test = metrics["test"]
    return {
        "kind": "base",
        "recipe": recipe,
        "parameters": metrics["parameters"]["base"],
        "images": metrics["images"],
        "val_accuracy": metrics["best_epoch"]["val_accuracy"],
        "test_accuracy": test["accuracy"],
        "test_interval": test["accuracy_interval"],
        "sha256": sha256(weights),
        "fingerprint": fingerprint(load_model("small-cnn", weights=weights))[0],
        "seconds": round(metrics["seconds"], 1),
        "versions": metrics["versions"],
    }


def versions() -> dict[str, str]:
    """What the numbers depend on, as the training processes have it."""
    from convpeft.training import results

    return results.versions() | {"threads": "1"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def best_rate(results: Results, target: str, arm: str) -> float:
    """The learning rate with the highest validation accuracy, among equals the lowest loss."""
    tried = [line for line in results.of("tune") if (line["target"], line["arm"]) == (target, arm)]
    return max(tried, key=lambda line: (line["val_accuracy"], -line["val_loss"]))["lr"]


def _tuning_cells(grid: dict[str, Any], results: Results, *, extend: bool = False) -> list[Any]:
    """The trials of each arm; with `extend` one more beyond the edge where the best one lies there."""
    from cells import Cell

    found: list[Any] = []
    for target in grid["targets"]:
        for arm in grid["arms"]:
            rates = arm["rates"]
            if extend:
                tried = [x["lr"] for x in results.of("tune") if (x["target"], x["arm"]) == (target, arm["name"])]
                best, factor = best_rate(results, target, arm["name"]), grid["factor"]
                rates = [best / factor] * (best == min(tried)) + [best * factor] * (best == max(tried))
            rank = grid["tuning_rank"] if arm.get("ranked") else None
            found += [Cell(True, target, arm["name"], rank, grid["tuning_seed"], lr) for lr in rates]
    return found


def _real_cells(grid: dict[str, Any], results: Results) -> list[Any]:
    """Every arm, rank and target, one seed after the other, so that a run cut short has whole seeds."""
    from cells import Cell

    return [
        Cell(False, target, arm["name"], rank, seed, best_rate(results, target, arm["name"]))
        for seed in grid["seeds"]
        for target in grid["targets"]
        for arm in grid["arms"]
        for rank in (grid["ranks"] if arm.get("ranked") else [None])
    ]


def _do(pool: ProcessPoolExecutor, setting: Any, results: Results, cells: Iterable[Any]) -> None:
    from cells import run_cell

    known = results.keys()
    waiting = [cell for cell in cells if cell.key not in known]
    jobs = [pool.submit(run_cell, setting, cell) for cell in waiting]
    for done, job in enumerate(as_completed(jobs), 1):
        line = job.result()
        results.add(line)
        shown = line.get("test_accuracy", line["val_accuracy"])
        told = (
            f"{line['kind']} {line['target']} {line['arm']} rank {line['rank']} seed {line['seed']} lr {line['lr']:g}"
        )
        print(f"{done}/{len(jobs)} {told}: {shown:.2%}, {line['seconds']:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    all_ = commands.add_parser("all", help="train what is not in the results yet, then write the page")
    all_.add_argument("--data", default="", help="folder with MNIST/raw and EMNIST/raw; without it the cache")
    all_.add_argument("--work", type=Path, default=Path("runs/mnist_to_emnist"), help="where the base is kept")
    all_.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    all_.add_argument("--grid", type=Path, default=HERE / "grid.toml")
    all_.add_argument("--recipe", type=Path, default=HERE / "recipe.toml")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    for each in (all_, page):
        each.add_argument("--results", type=Path, default=HERE / "results.jsonl")
        each.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    told = parser.parse_args()
    if told.command == "all":
        told.work.mkdir(parents=True, exist_ok=True)
        grid, recipe = (tomllib.loads(path.read_text(encoding="utf-8")) for path in (told.grid, told.recipe))
        run_all(grid, recipe, root=told.data, work=told.work, out=told.results, workers=told.workers)
    from page import write_page

    write_page(told.results, told.docs)


if __name__ == "__main__":
    main()
