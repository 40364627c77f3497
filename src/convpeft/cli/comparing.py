"""The command that runs a whole grid and compares it: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convpeft.cli.words import AsJson

app = typer.Typer()


@app.command(no_args_is_help=True)
def compare(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="Arms and what they share, a TOML file.")],
    out: Annotated[Path, typer.Option(help="Directory of the comparison; several processes may share it.")],
    workers: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the grid, as tune.trials=3.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Do the runs that failed once more.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show arms, runs and trials and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a grid of recipes, tuned alike, and compare the arms; the same command goes on where it was stopped."""
    from convpeft.commands.comparing import compare_grid, dry_run_grid
    from convpeft.comparing.grid import read_grid

    checked = read_grid(grid, assign=assign or ())
    if dry_run:
        dry_run_grid(checked, out, workers=workers, as_json=as_json)
    elif not compare_grid(checked, out, workers=workers, again=again, as_json=as_json):
        raise typer.Exit(1)
