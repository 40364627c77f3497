"""Document 003 on real data: `run --data ROOT` trains what is not in the results yet, `page` writes the page from them.

A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cells import Cell, Setting
    from common.lines import Line
    from plan import Budget, Transfer
    from store import Store

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share
Job = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]


def run(root: str, folder: Path, *, name: str, work: Path, workers: int, only: list[str] | None) -> None:
    """Prepare the bases, choose the rates on validation, make every run, then the sequences."""
    from cells import Setting, use_one_thread
    from plan import ARMS, BUDGETS
    from sequences import MODES, SCENARIOS
    from store import Store

    from convpeft.training.results import versions

    budget = BUDGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    store = Store(folder, name, budget.described(), versions() | {"threads": "1"})
    setting = Setting(root, work)
    wanted = [each for each in budget.transfers if only is None or each.name in only]
    for transfer in wanted:
        prepare_base(setting, transfer, budget, store)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as open_:
        pool: ProcessPoolExecutor | None = None
        if workers > 1:
            made = ProcessPoolExecutor(workers, mp_context=spawn, initializer=use_one_thread)
            pool = open_.enter_context(made)
        else:
            use_one_thread()
        for transfer in wanted:
            do(store, pool, [_cell_job(setting, cell) for cell in tuning_cells(budget, transfer)])
            do(store, pool, [_cell_job(setting, cell) for cell in real_cells(budget, transfer, store)])
        if only is None or "sequence" in only:
            do(store, pool, list(sequence_jobs(setting, budget, store)))
    names = [*(each.name for each in budget.transfers), *ARMS, *SCENARIOS, *MODES]
    store.sort({each: number for number, each in enumerate(names)})


def prepare_base(setting: Setting, transfer: Transfer, budget: Budget, store: Store) -> None:
    """Train the base on its source where it has no weights yet, and note what it is."""
    from cells import base_answers
    from images import digests

    path = Path(setting.weights(transfer))
    if not transfer.weights and not path.exists():
        _train_base(setting, transfer, budget, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = store.of("base", transfer=transfer.name)
    if known and known[0]["sha256"] != digest:
        raise SystemExit(f"{store.path}: was made with another base than {path}. Give another --results, or that base.")
    if known:
        return
    found = base_answers(setting, transfer)
    store.add(
        {
            "kind": "base",
            "transfer": transfer.name,
            "sha256": digest,
            "source_accuracy": found.accuracy,
            "source_images": len(found.predicted),
            "probe_accuracy": found.probe_accuracy,
            "digests": digests(transfer, setting.root),
        }
    )


def _train_base(setting: Setting, transfer: Transfer, budget: Budget, path: Path) -> None:
    from convpeft.commands.using import merge_run
    from convpeft.training.runs import train

    out = setting.work / f"base-{transfer.name}"
    shutil.rmtree(out, ignore_errors=True)  # of a command that was stopped
    train(
        {
            "model": {"source": transfer.network, "pretrained": False},
            "data": {"source": transfer.source.format(root=setting.root), "limit": budget.base_images},
            "method": {"name": "full"},
            "train": {"epochs": budget.base_epochs, "batch_size": 64, "lr": 0.002, "warmup": 0.15},
            "out": str(out),
        }
    )
    merge_run(out, path, weights=None)


def tuning_cells(budget: Budget, transfer: Transfer) -> list[Cell]:
    """The trials: the first arm of each group at every rate and fraction."""
    from cells import Cell
    from plan import ARMS, TUNING_SEED

    groups = {ARMS[arm].group: arm for arm in reversed(budget.arms)}
    return [
        Cell(True, transfer, arm, float(fraction), epochs, TUNING_SEED, lr)
        for fraction, epochs in budget.epochs.items()
        for arm in groups.values()
        for lr in budget.rates(transfer, arm)
    ]


def real_cells(budget: Budget, transfer: Transfer, store: Store) -> list[Cell]:
    """Every arm at its chosen rate with every seed; full fine-tuning at every rate."""
    from cells import Cell
    from plan import FULL

    found: list[Cell] = []
    for fraction, epochs in budget.epochs.items():
        for seed in budget.seeds:
            for arm in budget.arms:
                best = chosen_rate(store, transfer, arm, fraction)
                for lr in budget.rates(transfer, arm) if arm == FULL else (best,):
                    between = arm == FULL and lr == best
                    found.append(Cell(False, transfer, arm, float(fraction), epochs, seed, lr, between))
    return found


def chosen_rate(store: Store, transfer: Transfer, arm: str, fraction: str | float) -> float:
    """The rate with the highest validation accuracy, among equals the lowest loss."""
    from summary import best_rate

    return best_rate(store.lines, transfer.name, arm, float(fraction))


def sequence_jobs(setting: Setting, budget: Budget, store: Store) -> Iterable[Job]:
    """Every scenario, way and seed; the rate is the one that the whole pool of the first transfer chose."""
    from sequences import MODES, SCENARIOS, run_sequence

    transfer = budget.transfers[0]
    for seed in budget.seeds:
        for scenario in SCENARIOS:
            for mode, arm in MODES.items():
                lr = chosen_rate(store, transfer, arm, max(budget.fractions))
                yield run_sequence, (setting, transfer, budget.sequence, scenario, mode, seed, lr)


def _cell_job(setting: Setting, cell: Cell) -> Job:
    from cells import run_cell

    return run_cell, (setting, cell)


def do(store: Store, pool: ProcessPoolExecutor | None, jobs: list[Job]) -> None:
    """Do what is not in the results yet, in this process or in those of a pool."""
    waiting = [job for job in jobs if not store.of(**_wanted(job))]
    if pool is None:
        for number, (work, arguments) in enumerate(waiting, 1):
            _keep(store, work(*arguments), number, len(waiting))
        return
    futures = [pool.submit(work, *arguments) for work, arguments in waiting]
    for number, future in enumerate(as_completed(futures), 1):
        _keep(store, future.result(), number, len(futures))


def _wanted(job: Job) -> dict[str, Any]:
    """What the line of a job says of itself."""
    from cells import KEYS, Cell
    from sequences import KEYS as SEQUENCE_KEYS

    last = job[1][-1]
    if isinstance(last, Cell):
        return dict(zip(KEYS, last.key, strict=True))
    return dict(zip(SEQUENCE_KEYS, ("sequence", *job[1][3:6]), strict=True))


def _keep(store: Store, line: Line, number: int, count: int) -> None:
    store.add(line)
    said = [
        f"{line[key]}" for key in ("kind", "transfer", "scenario", "mode", "arm", "fraction", "seed") if key in line
    ]
    figures = [f"{key} {line[key]:.1%}" for key in ("val_accuracy", "test_accuracy", "source_accuracy") if key in line]
    print(
        f"{number}/{count} {' '.join(said)} lr {line['lr']:g}: {', '.join(figures)}, {line['seconds']:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="train what is not in the results yet")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    run_.add_argument(
        "--data", default=os.environ.get("CONVPEFT_DATA", ""), help="default: CONVPEFT_DATA; budget small needs none"
    )
    run_.add_argument("--budget", choices=("small", "medium", "full"), default="small")
    run_.add_argument("--only", nargs="+", metavar="NAME", help="some of the transfers, or sequence")
    run_.add_argument("--work", type=Path, default=Path("runs/retention"), help="where bases are kept")
    run_.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, page):
        each.add_argument("--results", type=Path, default=HERE, metavar="FOLDER", help="of results.jsonl")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(told.results, told.docs)
        return
    if told.budget != "small" and not told.data:
        parser.error(f"--budget {told.budget} needs --data, the folder with the data sets; README.md names them.")
    work = told.work / told.budget
    run(told.data, told.results, name=told.budget, work=work, workers=told.workers, only=told.only)


if __name__ == "__main__":
    main()
