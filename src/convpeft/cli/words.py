"""Arguments and options that several commands share, and the options of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convpeft.catalog import read_catalog
from convpeft.errors import OptionError, nearest
from convpeft.hub_address import is_hub_address


def local_run(text: str) -> Path:
    """The folder of a run or an adapter; what is on the hub is fetched, and its commit told."""
    return _fetched(text)[0] if is_hub_address(text) else Path(text)


def pinned_run(text: str) -> str:
    """The same as it stands in a recipe: a path, or the address on the hub with its commit."""
    return _fetched(text)[1] if is_hub_address(text) else str(Path(text))


def _fetched(text: str) -> tuple[Path, str]:
    from convpeft.adapter_description import fetch_adapter
    from convpeft.console import warnings_as_lines

    with warnings_as_lines():
        folder, pinned = fetch_adapter(text)
    return folder, str(pinned)


RUN_HELP = "A run's directory, an adapter's, or hf://user/name@revision."
RunPath = Annotated[Path, typer.Argument(parser=local_run, metavar="RUN", help=RUN_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Load the adapter even onto another base than its own.")]
Weights = Annotated[Path | None, typer.Option(help="The base's weights, a .safetensors or .pth file.")]


def method_help() -> str:
    """What each method's options are called, for the end of a help text."""
    lines = [
        f"  {entry.name}: {', '.join('--' + option.replace('_', '-') for option in entry.options) or 'none'}"
        for entry in read_catalog()
    ]
    # the mark keeps click from filling the lines
    return "\n".join(["\b", "Options of the methods (`convpeft methods` says more):", *lines])


def method_options(context: typer.Context, method: str) -> dict[str, Any]:
    """Turn what is left on the command line into options of the method: `--rank 8`, `--rank=8`, `--rslora`.

    Options of mixed methods carry the method's name: `--lora.rank 8`, `--bitfit.include norm`.
    """
    from convpeft.training.recipe import parse_value

    known = _known_options(method)
    options: dict[str, Any] = {}
    rest = list(context.args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise OptionError(f"{word!r} is not understood here. Options are written --name VALUE.")
        name, equals, text = word.removeprefix("--").partition("=")
        owner, dot, own_name = name.rpartition(".")
        key = owner + dot + own_name.replace("-", "_")
        if not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if key.rpartition(".")[2] in ("include", "exclude", "also_train") and (not dot or owner in method.split("+")):
            options.setdefault(key, []).extend(text.split(","))
        elif key in ("norm", "rank_policy") or known is None or key in known:
            options[key] = parse_value(text)
        else:
            flags = [option.removeprefix("--") for each in context.command.params for option in each.opts]
            shared = ["include", "exclude", "also-train", "norm", "rank-policy"]
            own = [option.replace("_", "-") for option in known]
            raise OptionError(
                f"--{name} is no option of train or of method {method!r}. {nearest(name, [*own, *shared, *flags])}"
            )
    return options


def _known_options(method: str) -> tuple[str, ...] | None:
    """Options of a method, or of a mix with the methods' names before them; None for a name that is not known here."""
    options = {entry.name: entry.options for entry in read_catalog()}
    names = method.split("+")
    if any(name not in options for name in names):
        return None
    if len(names) == 1:
        return options[method]
    return tuple(f"{name}.{option}" for name in names for option in options[name])
