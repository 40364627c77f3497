"""The command that takes a run elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convpeft.cli.words import AsJson, Force, RunPath, Weights
from convpeft.errors import OptionError

app = typer.Typer()


@app.command(no_args_is_help=True)
def export(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="File to write: .onnx, .pte or .safetensors.")] = None,
    to: Annotated[str, typer.Option(help="onnx, executorch, torch, or patch: the map beside the adapter.")] = "onnx",
    base: Annotated[bool, typer.Option("--base", help="The base without the adapter, ready to be patched.")] = False,
    quantize: Annotated[str | None, typer.Option(help="int8: weights and activations in eight bits.")] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="With --quantize: training images to find ranges with.")
    ] = 128,
    max_drop: Annotated[
        float, typer.Option(min=0, max=1, help="With --quantize: warn when accuracy falls by more.")
    ] = 0.01,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="ONNX that takes images of any size.")] = False,
    data: Annotated[str | None, typer.Option(help="Other images to check with than the run's test split.")] = None,
    weights: Weights = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a file that runs without convpeft, and check it against PyTorch on real images."""
    from convpeft.commands.exporting import Wish, export_map, export_run

    if to == "patch":
        if out or base or quantize or dynamic_size or data or weights or force:
            raise OptionError("--to patch writes the map beside the adapter. Leave the other options out.")
        export_map(run, as_json=as_json)
        return
    if out is None:
        raise OptionError(f"--out is missing: name the file to write for --to {to}.")
    wish = Wish(
        to=to,
        out=out,
        base=base,
        quantize=quantize,
        dynamic_size=dynamic_size,
        calibration_images=calibration_images,
        max_drop=max_drop,
    )
    export_run(run, wish, data=data, weights=weights, force=force, as_json=as_json)
