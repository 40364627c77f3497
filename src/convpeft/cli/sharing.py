"""The command that shares what was trained: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(no_args_is_help=True)
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or an adapter's.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Write the folder RUN-push that would be uploaded, and show it.")
    ] = False,
) -> None:
    """Put an adapter on the Hugging Face Hub, with a model card."""
    from convpeft.commands.sharing import push_run

    push_run(run, repository, private=private, dry_run=dry_run)
