"""The command that measures on corrupted images. It stands beside `evaluate`, which has options enough of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convpeft.cli.words import AsJson, Force, RunPath, Weights

app = typer.Typer()


@app.command(no_args_is_help=True)
def robustness(
    run: RunPath,
    corruptions: Annotated[
        str | None, typer.Option(metavar="NAMES", help="all, common, extra, or names such as fog,rain; default: all.")
    ] = None,
    severities: Annotated[str, typer.Option(metavar="NUMBERS", help="Some of 1,2,3,4,5.")] = "1,2,3,4,5",
    limit: Annotated[int | None, typer.Option(min=1, help="Images at most, stratified by class.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Other images than the run's own; cifar-c:DIR for published files.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, val, test or all; default as for evaluate.")] = None,
    table: Annotated[
        str, typer.Option(help="Whose constants: cifar, imagenet, or auto: cifar up to 64 pixels a side.")
    ] = "auto",
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run, measured on the same corrupted images.")
    ] = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="Where to write figures and report.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run on corrupted images: noise, blur, fog, snow, rain and more, in five severities."""
    from convpeft.commands.robustness import measure_path

    measure_path(
        run,
        corruptions=corruptions,
        severities=severities,
        table=table,
        limit=limit,
        data=data,
        split=split,
        weights=weights,
        against=against,
        out=out,
        force=force,
        as_json=as_json,
    )
