"""`convpeft train`: train with a progress bar and print the summary, or show what would be trained."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convpeft.console import (
    ProgressBar,
    command_line,
    complain,
    plain,
    print_json,
    say,
    show_table,
    warnings_as_lines,
)
from convpeft.training.recipe import Recipe


def train_recipe(recipe: Recipe, *, resume: bool, as_json: bool) -> None:
    """Train, with a progress bar, and print the summary."""
    from convpeft.counting import count
    from convpeft.training.processes import is_main
    from convpeft.training.results import write_run
    from convpeft.training.runs import open_run, run_prepared
    from convpeft.training.stopping import Stopped

    with ExitStack() as held:
        with warnings_as_lines():
            prepared = held.enter_context(open_run(recipe, resume=resume))
        recipe = prepared.recipe
        images = len(prepared.dataset.train)
        main = is_main()
        if main and not as_json:
            numbers = count(prepared.model)
            classes = len(prepared.dataset.classes)
            say(
                f"{recipe.model.source}, {recipe.method.name}: {numbers.trainable:,} parameters trained "
                f"({numbers.share:.2%} of {numbers.base:,}); {images:,} images of {classes} classes"
            )
            for note in prepared.notes:
                say(f"note: {note}")
        try:
            with ProgressBar(recipe.train.epochs, images, quiet=as_json or not main) as bar, warnings_as_lines():
                result = run_prepared(prepared, Path(recipe.out), resume=resume, watcher=bar)
        except Stopped as stop:
            if main:
                complain(f"{stop}. Go on with `convpeft train --resume {shlex.quote(recipe.out)}`.")
            raise SystemExit(stop.status) from None
        if not main:
            return
        write_run(result, command_line())
        for note in result.notes[len(prepared.notes) :]:
            if not as_json:
                say(f"note: {note}")
    if as_json:
        print((result.out / "metrics.json").read_text(encoding="utf-8"), end="")  # noqa: T201
        return
    from convpeft.reporting import format_bytes, format_duration, format_interval, format_share

    test = result.test
    rows = [
        ("test accuracy", format_interval(test.accuracy, test.accuracy_interval)),
        ("macro F1", f"{test.macro_f1:.4f}"),
        ("AUC", plain(test.macro_auc) if test.macro_auc is None else f"{test.macro_auc:.4f}"),
        ("trained parameters", f"{result.count.trainable:,}"),
        ("share of the network", format_share(result.count.trainable, result.count.base)),
        ("best epoch", f"{result.fit.best.epoch} of {len(result.fit.history)}"),
        ("time", format_duration(result.seconds)),
        ("peak memory", format_bytes(result.peak_memory)),
        ("adapter size", format_bytes(result.adapter_bytes)),
    ]
    show_table(f"{recipe.method.name} on {recipe.data.source}", ("", "result"), rows)
    if result.duplicates:
        say(f"warning: {result.duplicates} images occur in more than one split")
    say(f"adapter: {result.out / 'adapter'}")
    say(f"report:  {result.out / 'report.html'}")


def dry_run_recipe(recipe: Recipe, *, as_json: bool) -> None:
    """Print what would be trained."""
    from convpeft.counting import count
    from convpeft.injection import state_of
    from convpeft.training.preparing import prepare_run

    prepared = prepare_run(recipe)
    recipe = prepared.recipe
    numbers, state = count(prepared.model), state_of(prepared.model)
    skipped = [path for record in state.names.values() for path in record.skipped] if state else []
    if as_json:
        print_json(
            {
                "base": numbers.base,
                "trainable": numbers.trainable,
                "share": numbers.share,
                "layers": numbers.layers,
                "skipped": skipped,
                "images": {name: len(split) for name, split in prepared.dataset.splits().items()},
                "classes": list(prepared.dataset.classes),
            }
        )
        return
    rows = [
        (path, type(layer).__name__.removeprefix("Adapted"), _shape(layer), f"{numbers.layers[path]:,}")
        for path in numbers.layers
        for layer in [prepared.model.get_submodule(path)]
    ]
    title, headers = f"{recipe.method.name} on {recipe.model.source}", ("layer", "kind", "weight", "trained")
    show_table(title, headers, rows, numbers_from=3)
    for path in skipped:
        say(f"skipped: {path} (too small for the rank)")
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in prepared.dataset.splits().items())
    say(f"{numbers.trainable:,} of {numbers.base:,} parameters trained ({numbers.share:.2%}); images: {sizes}")


def _shape(layer: Any) -> str:
    from convpeft.adapters import Module
    from convpeft.slots import slots_of

    shapes = ["x".join(map(str, part.site.shape)) for part in slots_of(layer).children() if isinstance(part, Module)]
    return shapes[0] if shapes else ""
