"""The command that compresses: compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convpeft.cli.words import AsJson, Weights

app = typer.Typer()


@app.command(no_args_is_help=True)
def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Network, as in train --model.")],
    data: Annotated[str, typer.Option(help="Images of the network's own classes, for example folder:PATH.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors; the report goes beside it.")],
    weights: Weights = None,
    method: Annotated[str, typer.Option(help="cpd-epc, cpd, tucker or tucker-cpd.")] = "cpd-epc",
    accuracy_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Accuracy that may be lost before anything is trained again.")
    ] = 0.005,
    include: Annotated[list[str] | None, typer.Option(help="Layers: paths, globs, kinds; default: conv.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers that stay as they are.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of the validation split that choose the ranks.")] = 1000,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Ranks of a layer to look at, evenly spread; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of splits, choice and decompositions.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Replace convolutions by thin ones, as thin as the allowed drop in accuracy lets them be."""
    from convpeft.commands.compressing import compress_model

    compress_model(
        model,
        data=data,
        out=out,
        weights=weights,
        method=method,
        drop=accuracy_drop,
        include=include,
        exclude=exclude,
        images=images,
        candidates=candidates,
        seed=seed,
        as_json=as_json,
    )
