"""Few images a class: `run` compares what is not compared yet, `page` writes the page from the results.

python experiments/small_data/run.py run --data DIR --workers 2
python experiments/small_data/run.py page
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share


def run(name: str, *, data: Path, work: Path, results: Path, workers: int) -> None:
    """Run the comparisons of a budget."""
    from common.collecting import Store
    from common.running import compare
    from plan import BUDGETS

    store = Store(results, name, setting=lambda recipe: recipe["data"]["per_class"])
    compare(BUDGETS[name], store, grids=HERE, data=data, work=work / name, workers=workers)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="compare what is not compared yet")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    data = os.environ.get("CONVPEFT_DATA", ".")
    run_.add_argument("--data", type=Path, default=data, help="folder of the files that the grids name (CONVPEFT_DATA)")
    run_.add_argument("--budget", choices=("small", "medium", "full"), default="medium")
    run_.add_argument("--workers", type=int, default=2, help="runs at once")
    run_.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "small_data", help="where the runs lie")
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, page):
        each.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(told.results, told.docs)
    else:
        run(told.budget, data=told.data, work=told.work, results=told.results, workers=told.workers)


if __name__ == "__main__":
    main()
