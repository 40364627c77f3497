"""The commands that train and measure: train, evaluate, inspect, check; and those that list and show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from convpeft.cli.words import (
    RUN_HELP,
    AsJson,
    Force,
    RunPath,
    Weights,
    local_run,
    method_help,
    method_options,
    pinned_run,
)
from convpeft.errors import OptionError

app = typer.Typer()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=method_help(),
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
    warm_start: Annotated[
        str | None, typer.Option("--from", parser=pinned_run, metavar="RUN", help="Adapter to go on from.")
    ] = None,
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
    for key, value in method_options(context, method_name).items():
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
def inspect(
    path: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=f"{RUN_HELP[:-1]}, or a model.")],
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

    inspect_adapter(local_run(path), as_json=as_json)


@app.command(no_args_is_help=True)
def check(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Network, as in train --model.")] = None,
    weights: Weights = None,
    adapter: Annotated[
        Path | None,
        typer.Option(parser=local_run, metavar="RUN", help="Check this adapter; without MODEL on the base it names."),
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
