"""From what a grid has come to, to the file of results: what the page needs, and no name of a machine's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doing import Outcome
from plan import Task

from convpeft.comparing import Grid
from convpeft.reporting import write_whole

Row = Mapping[str, Any]


class Store:
    """The results of one budget; a file of another budget is refused."""

    def __init__(self, path: Path, budget: str) -> None:
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"budget": budget, "tasks": {}}
        if held["budget"] != budget:
            raise SystemExit(f"{path}: holds the {held['budget']} budget. Give another --results for {budget}.")
        self._path, self._content = path, held

    def take(self, task: Task, grid: Grid, outcome: Outcome) -> None:
        """Put the figures of a task in the place of those that were there."""
        self._content["tasks"][task.name] = figures(task, grid, outcome)
        write_whole(self._path, _text(self._content).encode())


def figures(task: Task, grid: Grid, outcome: Outcome) -> dict[str, Any]:
    """All that is kept of a task."""
    places = {cell.key: number for number, cell in enumerate(grid.cells)}
    done = [row for row in outcome.rows.values() if row["status"] == "done"]
    runs = sorted((row for row in done if row["kind"] == "run"), key=lambda row: places[row["key"]])
    if len({row["data_digests"]["test"] for row in runs}) != 1:
        raise SystemExit(f"{task.grid}: its runs were not tested on the same images.")
    first = next(row for row in runs if row["recipe"]["model"]["pretrained"])
    tuning, corrupted = grid.tuning, outcome.corrupted
    return {
        "title": task.title,
        "grid": task.grid,
        "assign": list(task.assign),
        "arms": list(grid.arms),
        "planned": len(grid.cells),
        "model": {key: value for key, value in first["recipe"]["model"].items() if key in ("source", "image_size")},
        "weights": outcome.weights,
        "source": task.images.partition(":")[0],
        "train": {key: first["recipe"]["train"][key] for key in ("batch_size", "optimizer", "schedule")},
        "augment": first["recipe"]["data"]["augment"],
        "pool": task.train_per_class,
        "trials": 0 if tuning is None else tuning.trials,
        "tuning_seed": None if tuning is None else tuning.seed,
        "ranges": {} if tuning is None else {key: each.told() for key, each in tuning.ranges.items()},
        "base_digest": first["base_digest"],
        "test_digest": first["data_digests"]["test"],
        "corrupted": None
        if corrupted is None
        else {
            "origin": corrupted.origin,
            "digest": corrupted.digest,
            "names": list(dict.fromkeys(name for name, _ in corrupted.cells)),
            "parts": task.parts,
            "labels": corrupted.labels.tolist(),
        },
        "versions": first["versions"],
        "runs": [_run(row, outcome.measured.get(row["key"])) for row in runs],
        "tried": sorted((_trial(row) for row in done if row["kind"] == "trial"), key=_place),
    }


def told(task: Task, grid: Grid, outcome: Outcome) -> str:
    """The figures of a single run in a line."""
    run = figures(task, grid, outcome)["runs"][0]
    line = f"{run['arm']}, seed {run['seed']}, rate {run['lr']:g}: clean {run['test_accuracy']:.2%}"
    answers = outcome.measured.get(grid.cells[0].key)
    if answers is not None:
        line += f", corrupted {answers['right'] / answers['answers']:.2%} of {answers['answers']:,}"
    return f"{line}. In the results: test_accuracy {run['test_accuracy']}, corrupted {run['corrupted'][:24]}..."


def _run(row: Row, measured: Row | None) -> dict[str, Any]:
    method = row["recipe"]["method"]
    return {
        "arm": row["arm"],
        "seed": row["seed"],
        "method": {key: value for key, value in method.items() if key not in ("rank_policy", "also_train")},
        "pretrained": row["recipe"]["model"]["pretrained"],
        "augment": row["recipe"]["data"]["augment"],
        "lr": row["lr"],
        "epochs": row["recipe"]["train"]["epochs"],
        "best_epoch": row["best_epoch"],
        "images": row["images"],
        "train_digest": row["data_digests"]["train"][:16],
        "val_digest": row["data_digests"]["val"][:16],
        "val_accuracy": round(row["val_accuracy"], 6),
        "test_accuracy": row["test"]["accuracy"],
        "right": row["test"]["right"],
        "corrupted": "" if measured is None else measured["packed"],
        "trainable": row["trainable"],
        "adapter_bytes": row["adapter_bytes"],
        "seconds": row["measured"]["seconds"],
        "measuring_seconds": 0.0 if measured is None else measured["seconds"],
    }


def _trial(row: Row) -> dict[str, Any]:
    return {
        "arm": row["arm"],
        "lr": row["tuned"]["train.lr"],
        "val_accuracy": round(row["val_accuracy"], 6),
        "val_loss": round(row["val_loss"], 6),
        "seconds": row["measured"]["seconds"],
    }


def _place(trial: Row) -> tuple[Any, ...]:
    return trial["arm"], trial["lr"]


def _text(content: Mapping[str, Any]) -> str:
    """One line a run or trial."""
    tasks = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(
            f"{json.dumps(key)}: {_lines(value) if key in ('runs', 'tried') else json.dumps(value)}"
            for key, value in task.items()
        )
        + "\n}"
        for name, task in content["tasks"].items()
    ]
    return f'{{\n"budget": {json.dumps(content["budget"])},\n"tasks": {{\n' + ",\n".join(tasks) + "\n}\n}\n"


def _lines(rows: Sequence[Row]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
