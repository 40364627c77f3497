"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn, cast

import typer

from convpeft._version import __version__
from convpeft.cli import adapting, combining, comparing, compressing, deploying, patching, robustness, sharing, using
from convpeft.errors import ConvpeftError, OptionError

app = typer.Typer(
    help="Parameter-efficient fine-tuning of convolutional networks: from a folder of images to a small adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(adapting.app)
app.add_typer(robustness.app)
app.add_typer(using.app)
app.add_typer(deploying.app)
app.add_typer(patching.app)
app.add_typer(combining.app)
app.add_typer(sharing.app)
app.add_typer(comparing.app)
app.add_typer(compressing.app)

# typer brings its own click and exports no name for the parent of this one
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _version(value: bool) -> None:
    if value:
        typer.echo(f"convpeft {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction] - typer registers it
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; errors are one line on standard error, with status 2 for usage and 1 for failure."""
    given = sys.argv[1:] if arguments is None else arguments
    debug, words = "--debug" in given, [word for word in given if word != "--debug"]
    try:
        status = app(args=words, prog_name="convpeft", standalone_mode=False)
    except typer.Abort:
        _interrupted(words)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            sys.exit(2)
        command = error.ctx.command_path if error.ctx else "convpeft"
        told = error.format_message()
        _fail(f"{told if told.endswith(('.', '?')) else f'{told}.'} See `{command} --help`.", 2, debug=debug)
    except OptionError as error:
        _fail(str(error), 2, debug=debug)
    except ConvpeftError as error:
        _fail(str(error), 1, debug=debug)
    except ModuleNotFoundError as error:
        _fail(f"needs the package {error.name}; install it with pip install 'convpeft[train]'.", 1, debug=debug)
    except KeyboardInterrupt:
        _interrupted(words)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}.", 1, debug=debug)
    except MemoryError:
        _fail("out of memory. Lower train.batch_size.", 1, debug=debug)
    except Exception as error:  # a fault of ours or of a library: still one line
        remedy = "Lower train.batch_size." if "memory" in str(error).lower() else "See where with --debug."
        _fail(f"{type(error).__name__}: {error}. {remedy}", 1, debug=debug)
    if status == _INTERRUPTED:  # typer turns Ctrl-C into this status
        _interrupted(words)
    sys.exit(status if isinstance(status, int) else 0)


def _interrupted(words: list[str]) -> NoReturn:
    remedy = " Go on with `convpeft train --resume RUN`." if "train" in words else ""
    _fail(f"interrupted.{remedy}", _INTERRUPTED, debug=False)


def _fail(message: str, status: int, *, debug: bool) -> NoReturn:
    if debug and (error := sys.exception()) is not None:
        raise error
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(message.split()))  # it may quote a file's words
    typer.echo(f"convpeft: {line}", err=True)
    sys.exit(status)
