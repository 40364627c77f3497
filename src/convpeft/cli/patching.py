"""The command for a device: patch; it imports numpy and onnx and nothing of what training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(no_args_is_help=True)
def patch(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The base's ONNX file.")],
    adapter: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or an adapter's.")],
    out: Annotated[Path, typer.Option(help="File to write, .onnx.")],
) -> None:
    """Make the adapted ONNX network out of the base's and an adapter; needs numpy and onnx only."""
    from convpeft.deployment.patching import patch_network

    typer.echo(patch_network(base, adapter, out))
