"""One job of a comparison in a process of its own: claimed, done, recorded, exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convpeft.comparing.cells import Cell, Study, digest, plain_recipe, with_keys
from convpeft.comparing.store import RESULTS, append_result, read_results
from convpeft.errors import ConvpeftError, RunError, one_line, plainly
from convpeft.training.recipe import Recipe, make_recipe, read_recipe

BUSY, STOPPED, BROKEN = 3, 4, 5  # exit statuses: another process has it; a signal came; results cannot be written
RUNS, WORK = "runs", "work"
_WATCH = 0.5  # seconds between looks at the parent


@dataclass(frozen=True)
class Job:
    """A run with the tuned values that it takes, or a trial of a study."""

    arm: str
    title: str
    key: str
    cell: Cell | None = None
    tuned: Mapping[str, Any] | None = None
    study: Study | None = None
    number: int = 0


def run_job(job: Job, out: Path, *, threads: int | None, again: bool) -> None:
    """Do a job unless it is done or somebody else has it; the body of a process, which ends with a status.

    It ends by SystemExit, so that the process gives back what libraries hold of the system, such as tqdm's semaphore.

    Args:
        job: What to do.
        out: Directory of the comparison.
        threads: Of arithmetic; None for the library's own choice.
        again: Do it although it is recorded as failed.
    """
    _end_with(os.getppid())
    _say_into(out / WORK / f"{job.key}.log")
    sys.exit(_do(job, out, threads=threads, again=again))


def record(out: Path, job: Job, row: dict[str, Any]) -> None:
    """Write a row: a trial into the journal first, so that what is in the results is in both."""
    if job.study is not None:
        from convpeft.comparing.study import keep_trial

        keep_trial(out, job.study, row)
    append_result(out / RESULTS, row)


def _do(job: Job, out: Path, *, threads: int | None, again: bool) -> int:
    """Claim, do and record a job; the status of its process."""
    folder = out / WORK / job.key
    try:
        with ExitStack() as held:
            if not _claim(folder, held):
                return BUSY
            known = read_results(out / RESULTS).get(job.key)
            if known is None or (again and known["status"] == "failed"):
                record(out, job, _row(job, out, threads))
    except BaseException as error:
        return _status(error)
    with suppress(OSError):
        shutil.rmtree(folder)
        (out / WORK / f"{job.key}.log").unlink()
    return 0


def failed_row(job: Job, error: str) -> dict[str, Any]:
    """The row of a job that came to nothing."""
    return _head(job) | {"status": "failed", "error": plainly(error)}


def _row(job: Job, out: Path, threads: int | None) -> dict[str, Any]:
    import torch

    if job.cell is not None and job.cell.study is not None and not job.tuned:
        return failed_row(job, f"all {job.cell.study.trials} trials of its tuning failed.")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return _head(job) | (_trial(job, out) if job.study is not None else _run(job, out)) | {"status": "done"}
    except (ConvpeftError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        return failed_row(job, one_line(f"{error}" or type(error).__name__))


def _head(job: Job) -> dict[str, Any]:
    """What is known before anything is trained."""
    recipe = job.cell.recipe if job.cell is not None else job.study.recipe if job.study is not None else None
    assert recipe is not None
    tuned = dict(job.tuned or {})
    recipe = with_keys(recipe, tuned)
    kind = "trial" if job.cell is None else "run"
    setting = {} if job.cell is None else job.cell.setting
    study = job.study or (job.cell.study if job.cell is not None else None)
    return {
        "kind": kind,
        "key": job.key,
        "arm": job.arm,
        "setting": setting,
        "seed": recipe.train.seed,
        "tuned": tuned,
        "study": None if study is None else study.key,
        "recipe": plain_recipe(recipe),
        "recipe_digest": digest(plain_recipe(recipe)),
    }


def _trial(job: Job, out: Path) -> dict[str, Any]:
    """Train and look at validation; the test split is no part of it."""
    from convpeft.training.loop import LAST, fit
    from convpeft.training.preparing import class_weights
    from convpeft.training.runs import CHECKPOINTS, open_run
    from convpeft.training.serving import serve

    study = job.study
    assert study is not None
    folder = out / WORK / job.key / "run"
    recipe = with_keys(study.recipe, {**(job.tuned or {}), "out": str(folder)})
    began = time.perf_counter()
    with open_run(recipe, resume=_goes_on(folder, recipe)) as prepared:
        last = folder / CHECKPOINTS / LAST
        with serve(prepared, folder, last, resume=True) as served:
            fitted = fit(
                prepared.model,
                served.train,
                served.val,
                prepared.recipe.train,
                class_weights=class_weights(prepared.dataset, prepared.recipe),
                checkpoints=folder / CHECKPOINTS,
                resume=True,
            )
    return {
        "val_accuracy": fitted.best.val_accuracy,
        "val_loss": fitted.best.val_loss,
        "best_epoch": fitted.best.epoch,
        "measured": {"seconds": round(time.perf_counter() - began, 3)},
    }


def _run(job: Job, out: Path) -> dict[str, Any]:
    import numpy as np

    from convpeft.comparing.digests import data_digests
    from convpeft.fingerprints import fingerprint
    from convpeft.training.results import versions, write_metrics
    from convpeft.training.runs import CHECKPOINTS, open_run, run_prepared

    assert job.cell is not None
    folder = out / RUNS / job.key
    recipe = with_keys(job.cell.recipe, {**(job.tuned or {}), "out": str(folder)})
    with open_run(recipe, resume=_goes_on(folder, recipe)) as prepared:
        result = run_prepared(prepared, folder, resume=True, watcher=None)
        write_metrics(result, ["convpeft", "compare", str(out)])
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    order = np.argsort(result.predictions.index)
    history = [asdict(row) for row in result.fit.history]
    times = sorted(row["seconds"] for row in history)
    test = result.test
    return {
        "test": {
            "n": test.n,
            "accuracy": test.accuracy,
            "interval": list(test.accuracy_interval),
            "macro_f1": test.macro_f1,
            "macro_auc": test.macro_auc,
            "right": np.packbits(result.predictions.correct[order]).tobytes().hex(),
        },
        "val_accuracy": result.fit.best.val_accuracy,
        "val_loss": result.fit.best.val_loss,
        "best_epoch": result.fit.best.epoch,
        "lr": recipe.train.lr or max((row["lr"] for row in history), default=None),
        "trainable": result.count.trainable,
        "base_parameters": result.count.base,
        "adapter_bytes": result.adapter_bytes,
        "images": {name: len(split) for name, split in result.dataset.splits().items()},
        "history": [
            {key: row[key] for key in ("epoch", "train_loss", "val_loss", "val_accuracy", "lr")} for row in history
        ],
        "base_digest": fingerprint(result.model)[0],
        "data_digests": data_digests(result.dataset),
        "notes": list(result.dataset.notes),  # what befell this very process is no part of the outcome
        "versions": versions(),
        "measured": {
            "seconds": round(result.seconds, 3),
            "epoch_seconds": round(times[len(times) // 2], 3),
            "peak_memory_bytes": result.peak_memory,
        },
    }


def _goes_on(folder: Path, recipe: Recipe) -> bool:
    """Whether a directory is this very run, cut off; anything else in its place is removed."""
    written = folder / "recipe.toml"
    if not folder.exists():
        return False
    with suppress(ConvpeftError):
        if make_recipe(read_recipe(written)) == recipe:
            return True
    shutil.rmtree(folder)
    return False


def _claim(folder: Path, held: ExitStack) -> bool:
    """Whether nobody else has the job."""
    from convpeft.training.locking import lock_run

    folder.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(lock_run(folder))
    except RunError:
        return False
    return True


def _status(error: BaseException) -> int:
    from convpeft.training.stopping import Stopped

    if isinstance(error, Stopped | KeyboardInterrupt | SystemExit):
        return STOPPED
    print(plainly(f"{type(error).__name__}: {error}"), flush=True)  # noqa: T201 - into the job's log
    return BROKEN


def _say_into(path: Path) -> None:
    """Send what libraries print into a file: the screen is the parent's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with(parent: int) -> None:
    """Stop, saved, once the parent has been killed: nobody would wait for the job."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
