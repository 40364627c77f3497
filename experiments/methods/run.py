"""Every method on two small tasks: `run` trains what is missing, `cost` measures steps, `page` writes the page.

python experiments/methods/run.py run --data DIR --only oct
python experiments/methods/run.py run --data DIR --only pneumonia
python experiments/methods/run.py cost --data DIR
python experiments/methods/run.py page
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


def run(
    root: Path, folder: Path, *, tasks: Sequence[str], names: Sequence[str], seeds: Sequence[int], again: bool
) -> bool:
    """Make the runs that are missing, or all that are named; say whether none failed."""
    from plan import TASKS, entries
    from runs import measure_run
    from store import Store

    from convpeft.errors import ConvpeftError
    from convpeft.training.results import versions

    every, fine = entries(), True
    for task in (TASKS[name] for name in tasks):
        store = Store(folder, task)
        wanted = [(name, seed) for seed in seeds for name in names]
        waiting = [key for key in wanted if again or key not in store.known()]
        for number, (name, seed) in enumerate(waiting, 1):
            told = f"{task.name} {number}/{len(waiting)} {name}, seed {seed}"
            try:
                line = measure_run(task, root, name, every[name], seed)
            except ConvpeftError as error:
                fine = False
                print(f"{told}: FAILED: {error}", flush=True)
                continue
            store.add(line, versions())
            shown = f"loss {line['train_loss']:.4f}, val {line['val_accuracy']:.1%}, test {line['test_accuracy']:.1%}"
            print(f"{told}: {shown}, {line['trainable']:,} parameters, {line['seconds']:.0f} s", flush=True)
    return fine


def cost(root: Path, folder: Path, *, tasks: Sequence[str], names: Sequence[str], rounds: int) -> None:
    """Measure all that is named in one process; what was measured of other entries stays."""
    from cost import measure_cost
    from plan import TASKS
    from store import place, read, write

    from convpeft.training.results import versions

    path = folder / "cost.json"
    for name in tasks:
        measured = measure_cost(TASKS[name], root, list(names), rounds=rounds)
        others = [row for row in read(path).get(name, []) if row["entry"] not in names]
        rows = sorted([*others, *measured], key=lambda row: place(row["entry"]))
        write(path, read(path) | {"versions": versions(), name: rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="train what is not in the results yet")
    cost_ = commands.add_parser("cost", help="measure time and memory of a step; wants a quiet machine")
    page = commands.add_parser("page", help="write the page and its plot from the results")
    data = os.environ.get("CONVPEFT_DATA")
    for each in (run_, cost_):
        each.add_argument("--data", type=Path, default=data, required=not data, help="default: CONVPEFT_DATA")
        each.add_argument("--only", choices=("oct", "pneumonia"), help="one of the two tasks")
        each.add_argument("--methods", nargs="+", metavar="NAME", help="methods or variants; default: all")
    run_.add_argument("--seeds", type=int, nargs="+", help="default: those of the plan")
    run_.add_argument("--again", action="store_true", help="make what is named anew, though it is there")
    cost_.add_argument("--rounds", type=int)
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, cost_, page):
        each.add_argument("--results", type=Path, default=HERE, metavar="FOLDER", help="of the JSON files")
    told = parser.parse_args()
    if told.command == "page":
        from page import write_page

        write_page(told.results, told.docs)
        return
    import torch
    from plan import ROUNDS, SEEDS, TASKS, entries

    torch.set_num_threads(1)
    names, tasks = told.methods or list(entries()), [told.only] if told.only else list(TASKS)
    if unknown := [name for name in names if name not in entries()]:
        parser.error(f"there is no entry {unknown[0]!r}; there are: {', '.join(entries())}")
    if told.command == "cost":
        cost(told.data, told.results, tasks=tasks, names=names, rounds=told.rounds or ROUNDS)
    elif not run(told.data, told.results, tasks=tasks, names=names, seeds=told.seeds or SEEDS, again=told.again):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
