"""From the lines of a comparison to the file of results: what the page needs, and no name of a machine's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convpeft.comparing.driving import keys_of
from convpeft.comparing.grid import Grid
from convpeft.comparing.store import RESULTS, read_results
from convpeft.data import load_data
from convpeft.reporting import write_whole

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One transfer in one budget.

    Args:
        name: Of its figures.
        title: On the page.
        grid: The file in the experiment's folder.
        assign: What is set beside it.
    """

    name: str
    title: str
    grid: str
    assign: tuple[str, ...] = ()


class Store:
    """The results of one budget; a file of another budget is refused.

    Args:
        path: The file.
        budget: Its name.
        setting: What the page calls the setting of a run, from the run's recipe: a number or a name.
    """

    def __init__(self, path: Path, budget: str, *, setting: Callable[[Row], int | str]) -> None:
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"budget": budget, "tasks": {}}
        if held["budget"] != budget:
            raise SystemExit(f"{path}: holds the {held['budget']} budget. Give another --results for {budget}.")
        self._path, self._content, self._setting = path, held, setting

    def take(self, task: Task, grid: Grid, out: Path, data: Path) -> None:
        """Put the figures of a comparison in the place of those that were there."""
        wanted = keys_of(grid)
        rows = [row for key, row in read_results(out / RESULTS).items() if key in wanted and row["status"] == "done"]
        self._content["tasks"][task.name] = _figures(task, grid, rows, data, self._setting)
        write_whole(self._path, _text(self._content).encode())


def _figures(
    task: Task, grid: Grid, rows: Sequence[Row], data: Path, setting: Callable[[Row], int | str]
) -> dict[str, Any]:
    runs = [row for row in rows if row["kind"] == "run"]
    places = {cell.key: number for number, cell in enumerate(grid.cells)}
    runs.sort(key=lambda row: places[row["key"]])
    if len({row["data_digests"]["test"] for row in runs}) != 1:
        raise SystemExit(f"{task.grid}: its runs were not tested on the same images. Give data.fold, or a test split.")
    first, tuning = runs[0], grid.tuning
    return {
        "title": task.title,
        "grid": task.grid,
        "assign": list(task.assign),
        "arms": list(grid.arms),
        "planned": len(grid.cells),
        "model": first["recipe"]["model"],
        "source": first["recipe"]["data"]["source"],
        "train": {key: first["recipe"]["train"][key] for key in ("batch_size", "optimizer", "schedule")},
        "trials": 0 if tuning is None else tuning.trials,
        "tuning_seed": None if tuning is None else tuning.seed,
        "ranges": {} if tuning is None else {key: each.told() for key, each in tuning.ranges.items()},
        "base_digest": first["base_digest"],
        "test_digest": first["data_digests"]["test"],
        "test_groups": _groups(first, data),
        "versions": first["versions"],
        "runs": [_run(row, setting(row["recipe"])) for row in runs],
        "tried": sorted((_trial(row, setting(row["recipe"])) for row in rows if row["kind"] == "trial"), key=_place),
    }


def _run(row: Row, setting: int | str) -> dict[str, Any]:
    return {
        "arm": row["arm"],
        "setting": setting,
        "seed": row["seed"],
        "lr": row["lr"],
        "epochs": row["recipe"]["train"]["epochs"],
        "best_epoch": row["best_epoch"],
        "images": row["images"],
        "train_digest": row["data_digests"]["train"][:16],
        "val_digest": row["data_digests"]["val"][:16],
        "val_accuracy": round(row["val_accuracy"], 6),
        "test_accuracy": row["test"]["accuracy"],
        "test_auc": None if row["test"]["macro_auc"] is None else round(row["test"]["macro_auc"], 6),
        "right": row["test"]["right"],
        "trainable": row["trainable"],
        "adapter_bytes": row["adapter_bytes"],
        "seconds": row["measured"]["seconds"],
    }


def _trial(row: Row, setting: int | str) -> dict[str, Any]:
    return {
        "arm": row["arm"],
        "setting": setting,
        "lr": row["tuned"]["train.lr"],
        "val_accuracy": round(row["val_accuracy"], 6),
        "val_loss": round(row["val_loss"], 6),
        "seconds": row["measured"]["seconds"],
    }


def _place(trial: Row) -> tuple[Any, ...]:
    return trial["setting"], trial["arm"], trial["lr"]


def _groups(row: Row, data: Path) -> list[int] | None:
    """Which test images belong together, as numbers in the order of the images; None where each is on its own."""
    section = row["recipe"]["data"]
    kind, _, place = section["source"].partition(":")
    spec = section["source"] if kind == "glyphs" else f"{kind}:{data.resolve() / place}"
    groups = load_data(spec, seed=row["seed"], fold=section.get("fold")).test.groups
    names = {name: number for number, name in enumerate(dict.fromkeys(groups or ()))}
    return None if groups is None else [names[name] for name in groups]


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
