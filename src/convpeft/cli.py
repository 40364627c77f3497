"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from convpeft._version import __version__
from convpeft.catalog import read_catalog
from convpeft.errors import ConvpeftError, OptionError, nearest

app = typer.Typer(
    help="Parameter-efficient fine-tuning of convolutional networks: from a folder of images to a small adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# typer brings its own click and exports no name for the parent of this one
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

_INTERRUPTED = 130  # 128 + SIGINT, as shells count

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or an adapter's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Load the adapter even onto another base than its own.")]
Weights = Annotated[Path | None, typer.Option(help="The base's weights, a .safetensors or .pth file.")]


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


def _method_help() -> str:
    lines = [
        f"  {entry.name}: {', '.join('--' + option.replace('_', '-') for option in entry.options) or 'none'}"
        for entry in read_catalog()
    ]
    # the mark keeps click from filling the lines
    return "\n".join(["\b", "Options of the methods (`convpeft methods` says more):", *lines])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=_method_help(),
    no_args_is_help=True,
)
def train(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Base network, for example timm/resnet18.a1_in1k.")] = None,
    data: Annotated[str | None, typer.Option(help="Images, for example folder:PATH; see `convpeft datasets`.")] = None,
    method: Annotated[str | None, typer.Option(help="Method; see `convpeft methods`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run.")] = None,
    weights: Weights = None,
    config: Annotated[Path | None, typer.Option(help="Recipe to start from, a TOML file.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key, for example train.lr=1e-3.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="train.epochs")] = None,
    lr: Annotated[float | None, typer.Option(help="train.lr; default: the method's own")] = None,
    batch_size: Annotated[int | None, typer.Option(help="train.batch_size")] = None,
    seed: Annotated[int | None, typer.Option(help="train.seed")] = None,
    prefix_cache: Annotated[
        str | None, typer.Option(help="auto, on or off: compute what comes before the first trained layer once.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="auto, weight, side or hybrid: how adapted layers are computed.")
    ] = None,
    autotune: Annotated[
        bool, typer.Option("--autotune", help="Measure which kernel is the fastest for each layer, once.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Keep the inputs of blocks only: less memory, more time.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Run the steps through torch.compile.")] = False,
    warm_start: Annotated[Path | None, typer.Option("--from", help="Adapter to go on from.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the sites and parameter counts and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --from: even onto another base than its own.")] = False,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was cut off.")] = None,
    as_json: AsJson = False,
) -> None:
    """Adapt a pretrained network to new images; leaves the adapter and a report in --out."""
    from convpeft.training.options import check_method
    from convpeft.training.recipe import make_recipe, put_key, read_recipe, set_keys

    shortcuts: dict[str, Any] = {
        "model.source": model,
        "model.weights": weights,
        "data.source": data,
        "method.name": method,
        "train.epochs": epochs,
        "train.lr": lr,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "train.prefix_cache": prefix_cache,
        "train.kernel": kernel,
        "train.autotune": autotune or None,
        "train.checkpointing": checkpointing or None,
        "train.compile": compiled or None,
        "out": out,
        "warm_start": warm_start,
        "force": force or None,
    }
    given = {
        key: str(value) if isinstance(value, Path) else value for key, value in shortcuts.items() if value is not None
    }
    if resume is not None and (given or config or assign or context.args):
        raise OptionError(f"--resume {resume} goes on with the run's own recipe. Leave the other options out.")
    values: dict[str, Any] = {}
    if resume is not None:
        values = read_recipe(resume / "recipe.toml") | {"out": str(resume)}
    elif config is not None:
        values = read_recipe(config)
    for key, value in given.items():
        put_key(values, key, value)
    named = set_keys(values, assign or []).get("method")
    method_name = str(cast(dict[str, Any], named).get("name", "lora")) if isinstance(named, dict) else "lora"
    for key, value in _method_options(context, method_name).items():
        put_key(values, f"method.{key}", value)
    recipe = make_recipe(set_keys(values, assign or []), where="recipe" if config is None else str(config))
    if recipe.warm_start is None:
        check_method(recipe.method)
    from convpeft.commands.training import dry_run_recipe, train_recipe

    if dry_run:
        dry_run_recipe(recipe, as_json=as_json)
    else:
        train_recipe(recipe, resume=resume is not None, as_json=as_json)


@app.command(no_args_is_help=True)
def evaluate(
    run: RunPath,
    data: Annotated[str | None, typer.Option(help="Other images than the run's own.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; default: test, or all where --data has no test split.")
    ] = None,
    weights: Weights = None,
    base: Annotated[bool, typer.Option(help="The base with its own head instead, adapter off.")] = False,
    old_head: Annotated[bool, typer.Option(help="The base's own head on the adapted features.")] = False,
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="Another run on the same test images.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write figures and report.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run or an adapter: accuracy with interval, confusion, calibration, mistakes."""
    from convpeft.commands.evaluating import evaluate_path

    if base and old_head:
        raise OptionError("--base and --old-head exclude each other: the adapter is off, or on under the old head.")
    who = "base" if base else "old-head" if old_head else "adapter"
    evaluate_path(
        run,
        data=data,
        split=split,
        weights=weights,
        who=who,
        against=against,
        out=out,
        force=force,
        as_json=as_json,
    )


@app.command(no_args_is_help=True)
def predict(
    run: RunPath,
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


@app.command(no_args_is_help=True)
def inspect(
    path: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's directory, an adapter's, or a model.")],
    cost: Annotated[
        bool, typer.Option("--cost", help="Show what training costs, layer by layer, beside full fine-tuning.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="With --cost MODEL: method; default: lora.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="With --cost: images in a batch; default: 8.")] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="With --cost: pixels a side; default: the model's own.")
    ] = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Show what an adapter file holds, without its base; or with --cost what training costs."""
    if cost:
        from convpeft.commands.costing import show_cost

        show_cost(path, method=method, batch=batch, size=size, weights=weights, as_json=as_json)
        return
    if any(given is not None for given in (method, batch, size, weights)):
        raise OptionError("--method, --batch, --size and --weights belong to --cost. Add it, or leave them out.")
    from convpeft.commands.listing import inspect_adapter

    inspect_adapter(Path(path), as_json=as_json)


@app.command(no_args_is_help=True)
def check(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Network, as in train --model.")] = None,
    weights: Weights = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Check this adapter; without MODEL on the base it names.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method to check; default: lora.")] = None,
    random_weights: Annotated[bool, typer.Option(help="Fetch no weights: check the architecture alone.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find out whether an adapter keeps its promises on a network; status 0 only when every check passes."""
    from convpeft.commands.checking import check_model

    passed = check_model(
        model,
        weights=weights,
        adapter=adapter,
        method=method,
        pretrained=not random_weights,
        force=force,
        as_json=as_json,
    )
    raise typer.Exit(0 if passed else 1)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, to see its options.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or the options of one."""
    from convpeft.commands.listing import show_method, show_methods

    if name is None:
        show_methods(as_json=as_json)
    else:
        show_method(name, as_json=as_json)


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """List the forms of --data and of --model."""
    from convpeft.commands.listing import show_datasets

    show_datasets(as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the demo's runs.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 4,
) -> None:
    """From digits to digits and letters, offline: four ways to adapt one network, compared."""
    from convpeft.demo import run_demo

    run_demo(out, epochs=epochs)


def _method_options(context: typer.Context, method: str) -> dict[str, Any]:
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
        _fail(f"{error.format_message().rstrip('.')}. See `convpeft --help`.", 2, debug=debug)
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
