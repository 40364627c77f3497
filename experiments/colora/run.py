"""CoLoRA: `run` compares what is not compared yet, `counts` counts VGG16, `page` writes the page from both.

python experiments/colora/run.py run --data DIR --workers 2
python experiments/colora/run.py run --budget octmnist --data DIR --results octmnist.json
python experiments/colora/run.py counts
python experiments/colora/run.py page
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share


def run(name: str, *, data: Path, work: Path, results: Path, workers: int, assign: Sequence[str]) -> None:
    """Run the comparisons of a budget."""
    from common.collecting import Store
    from common.running import compare
    from plan import BUDGETS, setting_of

    store = Store(results, name, setting=setting_of)
    tasks = [replace(task, assign=(*task.assign, *assign)) for task in BUDGETS[name]]
    compare(tasks, store, grids=HERE, data=data, work=work / name, workers=workers)


def count(path: Path) -> None:
    """Write the parameter counts of VGG16."""
    from vgg16 import count_rows

    from convpeft.reporting import write_whole

    lines = ",\n".join(json.dumps(row) for row in count_rows())
    write_whole(path, f"[\n{lines}\n]\n".encode())


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="compare what is not compared yet")
    counts = commands.add_parser("counts", help="count the parameters of VGG16; nothing is trained")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    data = os.environ.get("CONVPEFT_DATA", ".")
    run_.add_argument("--data", type=Path, default=data, help="folder of the files that the grids name (CONVPEFT_DATA)")
    run_.add_argument("--budget", choices=("small", "medium", "full", "octmnist"), default="medium")
    run_.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set beside every grid")
    run_.add_argument("--workers", type=int, default=2, help="runs at once")
    run_.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "colora", help="where the runs lie")
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, page):
        each.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    for each in (counts, page):
        each.add_argument("--counts", type=Path, default=HERE / "vgg16.json", metavar="FILE")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(told.results, told.counts, told.docs)
    elif told.command == "counts":
        count(told.counts)
    else:
        run(
            told.budget,
            data=told.data,
            work=told.work,
            results=told.results,
            workers=told.workers,
            assign=told.set,
        )


if __name__ == "__main__":
    main()
