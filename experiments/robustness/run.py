"""LoRA-C and robustness: `run` trains and measures what is missing, `cell` one cell again, `page` writes the page.

python experiments/robustness/run.py run --data DIR
python experiments/robustness/run.py cell "full, augmix" --seed 0 --data DIR
python experiments/robustness/run.py page
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share


def run(name: str, *, data: Path, work: Path, results: Path, workers: int) -> None:
    """Do the tasks of a budget, seed by seed, and keep what each seed has come to."""
    from collect import facts_of, run_facts
    from common.collecting import Store
    from doing import do
    from equal import compare_settings
    from images import lacking
    from plan import BUDGETS

    from convpeft.comparing import read_grid

    store = Store(results, name, setting=lambda _: "clean")
    for task in BUDGETS[name]:
        if missing := lacking(task, data):
            print(f"{task.title}: left out, there is no {' and no '.join(missing)} in {data}", flush=True)
            continue
        grid = read_grid(HERE / task.grid, assign=task.assign)
        equal: Any = None
        for last in sorted({cell.seed for cell in grid.cells}):
            part = replace(grid, cells=tuple(cell for cell in grid.cells if cell.seed <= last))
            outcome = do(task, part, data=data, work=work / name / task.name, workers=workers)
            equal = equal or compare_settings(grid, outcome.folder, outcome.out)
            facts, of_run = facts_of(task, outcome, equal), partial(run_facts, measured=outcome.measured)
            store.take(task, grid, outcome.out, outcome.folder, facts=facts, of_run=of_run)


def make_cell(name: str, arm: str, *, seed: int, data: Path, work: Path, workers: int) -> None:
    """Tune, train and measure one arm with one seed, in each task of a budget, and print what it comes to."""
    from collect import told
    from doing import do
    from images import lacking
    from plan import BUDGETS

    from convpeft.comparing import read_grid

    for task in BUDGETS[name]:
        grid = read_grid(HERE / task.grid, assign=(*task.assign, f"grid.seeds=[{seed}]"))
        part = replace(grid, cells=tuple(cell for cell in grid.cells if cell.arm == arm), baseline=arm)
        if not part.cells:
            raise SystemExit(f"{arm!r} is no arm. There are: {'; '.join(grid.arms)}.")
        if not lacking(task, data):
            outcome = do(task, part, data=data, work=work / name / task.name, workers=workers)
            print(f"{task.title}: {told(outcome.rows[part.cells[0].key], outcome.measured)}")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="train and measure what is missing")
    cell = commands.add_parser("cell", help="make one cell again and print it")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    data = os.environ.get("CONVPEFT_DATA", ".")
    for each in (run_, cell):
        each.add_argument("--data", type=Path, default=data, help="folder of the files in plan.py (CONVPEFT_DATA)")
        each.add_argument("--budget", choices=("small", "medium", "full"), default="medium")
        each.add_argument("--workers", type=int, default=1, help="runs at once")
    run_.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "robustness", help="where the runs lie")
    cell.add_argument("arm", help="as it is called on the page")
    cell.add_argument("--seed", type=int, default=0)
    cell.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "robustness-again", help="where it is made")
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, page):
        each.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(told.results, told.docs)
    elif told.command == "cell":
        make_cell(told.budget, told.arm, seed=told.seed, data=told.data, work=told.work, workers=told.workers)
    else:
        run(told.budget, data=told.data, work=told.work, results=told.results, workers=told.workers)


if __name__ == "__main__":
    main()
