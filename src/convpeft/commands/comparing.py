"""`convpeft compare`: run a grid with a bar and a line a run, and print the table; or show what would be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from convpeft.comparing.driving import drive, jobs_left, keys_of
from convpeft.comparing.grid import Grid
from convpeft.comparing.report import HTML, cells_of, write_comparison
from convpeft.comparing.store import RESULTS, read_results
from convpeft.comparing.summary import summarise
from convpeft.console import complain, console, print_json, say, show_table
from convpeft.reporting import format_duration, printable


class LiveTable:
    """A table of the arms that fills, above a bar; where there is no terminal, one line a run that has ended."""

    def __init__(self, grid: Grid, *, quiet: bool) -> None:
        self._grid, self._quiet, self._done = grid, quiet, 0
        self._keys = keys_of(grid)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("runs", total=len(self._keys))
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._shown = console.is_terminal and not quiet

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.stop()

    def update(self, rows: Mapping[str, dict[str, Any]], running: list[str]) -> None:
        """Show how far the arms are."""
        self._done = len(self._keys & rows.keys())
        if self._shown:
            self._bar.update(self._task, completed=self._done)
            now = Text(f"now: {'; '.join(printable(title) for title in running) or 'waiting for other processes'}")
            self._live.update(Group(self._table(rows), now, self._bar))

    def finished(self, row: Mapping[str, Any]) -> None:
        """Say one line of a run or trial."""
        if self._quiet or row["key"] not in self._keys:
            return
        self._done += 1
        setting = "".join(f", {key} {value}" for key, value in row["setting"].items())
        tuned = "".join(f", {key} {value:g}" for key, value in row["tuned"].items() if isinstance(value, float))
        if row["status"] == "done" and row["kind"] == "run":
            figures = f"test {row['test']['accuracy']:7.2%}, validation {row['val_accuracy']:7.2%}"
        elif row["status"] == "done":
            figures = f"validation {row['val_accuracy']:7.2%}"
        else:
            figures = f"failed: {row['error']}"
        seconds = row.get("measured", {}).get("seconds")
        took = "" if seconds is None else f", {format_duration(seconds)}"
        say(
            f"{self._done:>4}/{len(self._keys)} {row['kind']:<5} {row['arm']}{setting}, seed {row['seed']}{tuned}: "
            f"{figures}{took}"
        )

    def _table(self, rows: Mapping[str, dict[str, Any]]) -> Table:
        table = Table(title="comparison", title_justify="left", title_style="bold")
        for header, side in (("arm", "left"), ("runs", "right"), ("failed", "right"), ("test accuracy", "right")):
            table.add_column(header, justify=side)  # pyright: ignore[reportArgumentType] - words of rich's own
        for line in summarise(self._grid, rows):
            name = f"{line.arm} ({line.setting})" if line.setting else line.arm
            whole = len(line.rows) + len(line.failures) + line.missing
            accuracy = f"{line.mean:.2%}" if line.rows else "-"
            cells = (printable(name), f"{len(line.rows)}/{whole}", str(len(line.failures)), accuracy)
            table.add_row(*(Text(cell) for cell in cells))
        return table


def compare_grid(grid: Grid, out: Path, *, workers: int, again: bool, as_json: bool) -> bool:
    """Do what is left, write the pages and print the table; whether no run has failed."""
    try:
        with LiveTable(grid, quiet=as_json) as shown:
            rows = drive(grid, out, workers=workers, again=again, viewer=shown)
    except KeyboardInterrupt:
        complain("stopped; what was running is saved. Go on with the same command.")
        raise SystemExit(130) from None
    write_comparison(grid, rows, out)
    lines = summarise(grid, rows)
    failed = [row for row in rows.values() if row["status"] == "failed" and row["kind"] == "run"]
    if as_json:
        print_json({"arms": [_told(line) for line in lines], "failed": len(failed), "report": str(out / HTML)})
    else:
        headers = ("arm", "seeds", "test accuracy", "against the baseline", "trained")
        show_table("comparison", headers, [cells_of(line, grid)[:5] for line in lines])
        for line in lines:
            if line.against is not None:
                say(line.against.sentence)
        say(f"report: {out / HTML}")
    if failed:
        complain(f"{len(failed)} of {len(grid.cells)} runs failed: {failed[0]['error']}")
    return not failed


def dry_run_grid(grid: Grid, out: Path, *, workers: int, as_json: bool) -> None:
    """Print arms, runs and trials, what is done, and how long the rest may take."""
    rows = read_results(out / RESULTS)
    left = jobs_left(grid, rows)
    trials = sum(study.trials for study in grid.studies)
    seconds = [row["measured"]["seconds"] for row in rows.values() if "measured" in row]
    estimate = len(left) * mean(seconds) / workers if seconds else None
    asked = [job.cell or job.study for job in left]
    epochs = sum(each.recipe.train.epochs for each in asked if each is not None)
    facts = {
        "arms": list(grid.arms),
        "baseline": grid.baseline,
        "runs": len(grid.cells),
        "trials": trials,
        "left": len(left),
        "epochs_left": epochs,
        "seconds_left": estimate,
    }
    if as_json:
        print_json(facts)
        return
    counted = [
        (arm, str(sum(cell.arm == arm for cell in grid.cells)), str(sum(s.trials for s in _studies(grid, arm))))
        for arm in grid.arms
    ]
    show_table("comparison", ("arm", "runs", "trials"), counted)
    if grid.tuning is not None:
        for key, each in grid.tuning.ranges.items():
            say(f"tuned on validation: {key}, {each.told()}, {grid.tuning.trials} trials an arm and setting")
    say(
        f"{len(grid.cells)} runs and {trials} trials; {len(left)} are left, {epochs:,} epochs; baseline {grid.baseline}"
    )
    say(
        "time: no run has ended yet to estimate it from"
        if estimate is None
        else f"time: about {format_duration(estimate)} with {workers} at once, as long as those before took"
    )


def _studies(grid: Grid, arm: str) -> list[Any]:
    return list({cell.study.key: cell.study for cell in grid.cells if cell.arm == arm and cell.study}.values())


def _told(line: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"arm": line.arm, "setting": line.setting, "seeds": [row["seed"] for row in line.rows]}
    if line.rows:
        found |= {"accuracies": line.accuracies, "mean": line.mean, "sd": line.deviation, "interval": line.interval}
        found |= {"trainable": round(line.middle("trainable")), "learning_rates": line.rates}
    if line.against is not None:
        found["against_baseline"] = vars(line.against)
    found["failures"] = [row["error"] for row in line.failures]
    return found
