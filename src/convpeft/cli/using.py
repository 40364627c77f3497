"""The commands that use what was trained: predict, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convpeft.cli.words import AsJson, Force, RunPath, Weights

app = typer.Typer()


@app.command(no_args_is_help=True)
def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's directory, an adapter's, or an exported .onnx file.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 5,
    weights: Weights = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Classify images."""
    from convpeft.commands.using import predict_images

    predict_images(run, images, top=top, weights=weights, force=force, as_json=as_json)


@app.command(no_args_is_help=True)
def merge(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    weights: Weights = None,
    force: Force = False,
) -> None:
    """Write the network with the adapter merged in; it costs nothing extra at inference."""
    from convpeft.commands.using import merge_run

    merge_run(run, out, weights=weights, force=force)
