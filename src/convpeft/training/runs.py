"""A run: from a recipe to a directory with the adapter, its figures and a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from convpeft.counting import count
from convpeft.errors import OptionError, RunError
from convpeft.evaluation import classification_metrics, predict_logits
from convpeft.storage import save
from convpeft.training.checkpoints import read_checkpoint, surroundings
from convpeft.training.choosing import read_record
from convpeft.training.history import Watcher
from convpeft.training.locking import LOCK, lock_run
from convpeft.training.loop import LAST, fit
from convpeft.training.prefix import choose_prefix
from convpeft.training.preparing import Prepared, class_weights, prepare_run, settle
from convpeft.training.processes import is_main, wait_for_all
from convpeft.training.recipe import Recipe, make_recipe, read_recipe
from convpeft.training.results import Result, peak_memory, write_run
from convpeft.training.room import check_room
from convpeft.training.serving import serve
from convpeft.writing import remove_leftovers, write_file

RECIPE, CHECKPOINTS = "recipe.toml", "checkpoints"


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, resume: bool = False, watcher: Watcher | None = None
) -> Result:
    """Do everything a recipe says: build, adapt, train, evaluate on the test split, save and report.

    Args:
        recipe: A recipe, its values, or the path of its TOML file.
        resume: Go on from the run's last checkpoint instead of refusing a directory that is there.
        watcher: Is told of batches and epochs, for a progress bar.

    Returns:
        The outcome; everything in it is also in the run's directory.

    Raises:
        OptionError: If the recipe is wrong.
        DataError: If the data cannot be read.
        ModelError: If the model cannot be built or adapted.
        RunError: If the directory is in use, or training breaks down.
        KeyboardInterrupt: If SIGINT came while training; the state is saved, to be resumed.
        SystemExit: If SIGTERM came while training; the state is saved, to be resumed.
    """
    checked = as_recipe(recipe)
    with open_run(checked, resume=resume) as prepared:
        result = run_prepared(prepared, Path(checked.out), resume=resume, watcher=watcher)
        if is_main():
            write_run(result)
    return result


@contextmanager
def open_run(recipe: Recipe, *, resume: bool = False) -> Generator[Prepared]:
    """Prepare a run and hold its directory, with the recipe in it, for the time of the block.

    Nothing is left behind if the preparation fails.

    Raises:
        RunError: If the directory is another run's, or another process trains into it.
    """
    recipe, out = settle(recipe), Path(recipe.out)
    with ExitStack() as held:
        notes: list[str] = []
        locked = False
        if is_main():
            _claim(out, recipe, resume=resume)
            if out.is_dir():
                with _naming(out):
                    notes, locked = _take(out, held), True
        wait_for_all()
        prepared = prepare_run(recipe)
        prepared = dataclasses.replace(prepared, notes=(*notes, *prepared.notes))
        _ = prepared.batches, prepared.leaks  # pictures that cannot be read are found here
        if is_main():
            with _naming(out):
                if not locked:
                    if not out.exists():
                        held.callback(_remove_empty, out)  # nothing is left where no room is found
                    out.mkdir(parents=True, exist_ok=True)
                    _take(out, held)
                    _claim(out, recipe, resume=resume)  # another process may have been faster
                check_room(out, prepared.model, recipe.train)
                prepared = _with_prefix(prepared, out, resume=resume)
                write_file(out / RECIPE, recipe.to_toml().encode())
        yield prepared


def _with_prefix(prepared: Prepared, out: Path, *, resume: bool) -> Prepared:
    """Decide what is computed once instead of in every epoch."""
    chosen, notes = choose_prefix(
        prepared.recipe, prepared.model, prepared.batches, out, out / CHECKPOINTS / LAST, resume=resume
    )
    changed = dataclasses.replace(prepared, prefix=chosen, notes=(*prepared.notes, *notes))
    changed.__dict__.update(batches=prepared.batches, leaks=prepared.leaks)  # read once
    return changed


@contextmanager
def _naming(out: Path) -> Generator[None]:
    """Say which directory cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from None


def _remove_empty(out: Path) -> None:
    with suppress(OSError):
        out.rmdir()


def _take(out: Path, held: ExitStack) -> list[str]:
    """Lock a directory, clear what killed writers have left, and say what is found of a run before."""
    notes = [held.enter_context(lock_run(out))]
    remove_leftovers(out)
    found = read_checkpoint(out / CHECKPOINTS / LAST)
    if found is not None and found.damaged is not None:
        notes.append(f"{found.damaged}: is damaged. The run goes on from the checkpoint before it.")
    if found is not None and read_record(found.facts) is None:
        notes.append(f"{out}: its checkpoint does not say how layers were computed. That is chosen anew.")
    now = surroundings()
    before = now if found is None else found.facts.get("surroundings", now)
    notes += [
        f"the run was begun with {key} {before[key]} and goes on with {value}: its last bits may differ."
        for key, value in now.items()
        if before.get(key, value) != value
    ]
    return [note for note in notes if note is not None]


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """A checked recipe from any of the forms that `train` takes."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | Path):
        return make_recipe(read_recipe(recipe), where=str(recipe))
    if not isinstance(recipe, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        got = type(recipe).__name__
        raise OptionError(f"recipe: expected a Recipe, its values or the path of a TOML file, got {got}.")
    return make_recipe(recipe)


def run_prepared(prepared: Prepared, out: Path, *, resume: bool, watcher: Watcher | None) -> Result:
    """Train, evaluate and save what `prepare_run` has built."""
    recipe, dataset, model = prepared.recipe, prepared.dataset, prepared.model
    began = time.perf_counter()
    with serve(prepared, out, out / CHECKPOINTS / LAST, resume=resume, watcher=watcher) as served:
        fitted = fit(
            model,
            served.train,
            served.val,
            recipe.train,
            class_weights=class_weights(dataset, recipe),
            checkpoints=out / CHECKPOINTS,
            resume=resume,
            watcher=watcher,
        )
    model.eval()
    predictions = predict_logits(model, prepared.batches["test"])
    metrics = classification_metrics(predictions.probabilities, predictions.labels, dataset.classes)
    adapter = out / "adapter"
    if is_main():
        save(model, adapter, classes=dataset.classes, preprocessing=prepared.preprocessing)
    wait_for_all()
    return Result(
        out=out,
        recipe=recipe,
        dataset=dataset,
        model=model,
        fit=fitted,
        count=count(model),
        predictions=predictions,
        test=metrics,
        seconds=time.perf_counter() - began,
        peak_memory=peak_memory(),
        adapter_bytes=sum(file.stat().st_size for file in adapter.iterdir()),
        leaks=prepared.leaks,
        notes=(*prepared.notes, *served.notes),
    )


def _claim(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Refuse a directory that holds something, unless it is this very run's and is to be resumed."""
    if not out.exists() or (out.is_dir() and all(each.name == LOCK for each in out.iterdir())):
        return
    if not resume:
        raise RunError(f"{out}: exists already. Give another --out, or --resume to go on with it.")
    written = out / RECIPE
    if not written.is_file():
        raise RunError(f"{out}: holds no {RECIPE}, so there is no run to resume. Give another --out.")
    started = make_recipe(read_recipe(written), where=str(written))
    if started.model_copy(update={"out": recipe.out}) != recipe:  # a run may have been moved
        raise RunError(f"{out}: was started with another recipe. Resume it with `convpeft train --resume {out}`.")
