"""Which arrangement pays: `run` compares what is not compared yet, `page` writes the page from the results.

python experiments/arrangements/run.py run --data DIR
python experiments/arrangements/run.py cost --data DIR
python experiments/arrangements/run.py cell --data DIR --task cifar10 --arm "serial, group" --seed 0
python experiments/arrangements/run.py page
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compare what is not compared yet, every arm with one seed first")
    collect = commands.add_parser("collect", help="keep what a run that was cut off has come to")
    cost = commands.add_parser("cost", help="time an epoch of each arm beside full fine-tuning")
    cell = commands.add_parser("cell", help="tune and train one arm of one transfer again")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    for each in (run, collect, cost, cell):
        each.add_argument("--data", type=Path, default=Path(os.environ.get("CONVPEFT_DATA", ".")), help="CONVPEFT_DATA")
        each.add_argument("--budget", choices=("small", "medium", "full"), default="medium")
        each.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "arrangements", help="where the runs lie")
        each.add_argument("--workers", type=int, default=1, help="runs at once, of one thread each")
    for each in (run, collect, cost, page):
        each.add_argument("--results", type=Path, default=HERE, metavar="FOLDER", help="of results.json and cost.json")
    cell.add_argument("--task", required=True, help="name of the transfer, as plan.py has it")
    cell.add_argument("--arm", required=True, help="name of the arm, as the grid has it")
    cell.add_argument("--seed", type=int, default=0)
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(told.results, told.docs)
        return
    from doing import Doing

    doing = Doing(told.budget, data=told.data, work=told.work, workers=told.workers)
    if told.command == "cell":
        doing.cell(told.task, told.arm, told.seed)
    else:
        {"run": doing.run, "collect": doing.collect, "cost": doing.cost}[told.command](told.results)


if __name__ == "__main__":
    main()
