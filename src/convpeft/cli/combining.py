"""The command that sums adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convpeft.cli.words import Weights
from convpeft.errors import OptionError

app = typer.Typer()


@app.command(no_args_is_help=True)
def combine(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Adapters of one base, or runs.")],
    out: Annotated[Path, typer.Option(help="Directory of the new adapter.")],
    coefficients: Annotated[
        str | None, typer.Option(help="A number for each, as 0.5,0.5. Default: equal ones that add up to 1.")
    ] = None,
    weights: Weights = None,
) -> None:
    """Write the weighted sum of adapters of one base as a new adapter."""
    from convpeft.commands.combining import combine_adapters

    combine_adapters(adapters, out, coefficients=_numbers(coefficients), weights=weights)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise OptionError(f"--coefficients {text!r}: expected numbers with commas between them, as 0.5,0.5.") from None
