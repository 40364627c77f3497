"""Stable decompositions: `run` measures what is not in the results yet, `cell` one case again, `page` writes the page.

python experiments/stable_decomposition/run.py run --data DIR --budget medium
python experiments/stable_decomposition/run.py cell --data DIR --network cifar-resnet/20 --method cpd-epc --setting 0.02
python experiments/stable_decomposition/run.py page
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

if TYPE_CHECKING:
    from plan import Budget

    from measuring import Bench

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for what the experiments share


def run(name: str, folder: Path, *, data: Path | None, weights: Path | None) -> None:
    """Measure the cases that the results do not hold yet, and write each as soon as it is known."""
    from images import digests
    from plan import BUDGETS
    from store import Store, chosen_rates

    from convpeft.training.results import versions

    budget = BUDGETS[name]
    store = Store(folder, name, budget.described(), versions() | {"threads": "1"})
    with tempfile.TemporaryDirectory() as place:
        bench, files = open_bench(budget, data=data, weights=weights, work=Path(place))
        for case in store.missing():
            line = bench.measure(case, chosen_rates(store.lines))
            found = {"network": case["network"], "seed": case["seed"]}
            if not any(each["kind"] == "input" and found.items() <= each.items() for each in store.lines):
                sha256 = hashlib.sha256(files[case["network"]].read_bytes()).hexdigest()
                store.add({"kind": "input", **found, "weights": sha256, "images": digests(bench.images(case))})
            store.add(line)
            print(told(line), flush=True)


def cell(folder: Path, case: dict[str, Any], *, data: Path | None, weights: Path | None) -> None:
    """Measure one case of the results again, and print its figures beside those that are held."""
    from common.lines import RESULTS, read_lines
    from plan import budget_of, key_of
    from store import chosen_rates, measured

    lines = read_lines(folder / RESULTS)
    held = next((line for line in measured(lines) if key_of(line) == key_of(case)), None)
    if held is None:
        names = ", ".join(f"{value}" for value in key_of(case))
        raise SystemExit(f"{folder / RESULTS}: holds no case ({names}). Name one of its table.")
    with tempfile.TemporaryDirectory() as place:
        bench, _ = open_bench(budget_of(lines[0]["budget"]), data=data, weights=weights, work=Path(place))
        again = bench.measure(case, chosen_rates(lines))
    print(f"held:  {told(held)}\nagain: {told(again)}")
    plain = json.loads(json.dumps(again))
    print("every figure but the seconds is the same" if _timeless(plain) == _timeless(held) else "they differ")


def open_bench(budget: Budget, *, data: Path | None, weights: Path | None, work: Path) -> tuple[Bench, dict[str, Path]]:
    """What measures cases, and the weights of each network, trained first where the network has none."""
    import torch
    from plan import GENERATED, WEIGHTS

    from measuring import Bench

    torch.set_num_threads(1)
    networks = {part.network for part in budget.parts}
    if networks != {GENERATED} and data is None:
        raise SystemExit("this budget needs real images: --data DIR, or CONVPEFT_DATA.")
    place = weights or (data or Path()) / "weights"
    files = {network: place / WEIGHTS[network] for network in networks - {GENERATED}}
    if GENERATED in networks:
        files[GENERATED] = _trained(work)
    return Bench(budget, data, files, work), files


def _trained(work: Path) -> Path:
    """A small network that has learned drawn digits."""
    from plan import GENERATED

    import convpeft
    from convpeft.commands.using import merge_run

    values = {
        "model": {"source": GENERATED, "pretrained": False},
        "data": {"source": "glyphs:digits"},
        "method": {"name": "full"},
        "train": {"epochs": 3, "batch_size": 64, "lr": 0.002, "warmup": 0.15},
        "out": str(work / "base"),
    }
    convpeft.train(values)
    merge_run(work / "base", work / "base.safetensors", weights=None)
    shutil.rmtree(work / "base")
    return work / "base.safetensors"


def told(line: dict[str, Any]) -> str:
    """A line of results in one line of text."""
    left = " and ".join(f"{line[key][1] / line[key][0]:.1%} of the {key}" for key in ("parameters", "multiplications"))
    restored = [
        f"{each['arm']} at {each['rate']:g} {each['accuracy']:.2%}" if "accuracy" in each else f"{each['arm']} broke"
        for each in (*line.get("tried", ()), *line.get("restored", ()))
    ]
    name = " ".join(str(line[key]) for key in ("kind", "network", "method", "setting", "seed"))
    accuracy = " -> ".join(f"{line[key]['accuracy']:.2%}" for key in ("before", "thin"))
    return (
        f"{name}: {left}, {accuracy}; {'; '.join(restored)} ({line['search_seconds']:.0f} of {line['seconds']:.0f} s)"
    )


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    # trials are those of all drops before, which a case by itself has not
    return {key: value for key, value in line.items() if key not in ("seconds", "search_seconds", "trials")}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="measure what is not in the results yet")
    cell_ = commands.add_parser("cell", help="measure one case of the results again")
    page = commands.add_parser("page", help="write the page and its plots from the results")
    data = os.environ.get("CONVPEFT_DATA")
    for each in (run_, cell_):
        each.add_argument("--data", type=Path, default=data, help="folder of the images; default: CONVPEFT_DATA")
        each.add_argument("--weights", type=Path, help="folder of the weights; default: weights below --data")
    run_.add_argument("--budget", choices=("small", "medium", "full"), default="medium")
    cell_.add_argument("--kind", choices=("search", "equal ranks", "rates"), default="search")
    cell_.add_argument("--network", required=True)
    cell_.add_argument("--method", required=True)
    cell_.add_argument("--setting", type=float, required=True, help="allowed drop, or share of the ranks")
    cell_.add_argument("--seed", type=int, default=0)
    page.add_argument("--docs", type=Path, default=REPOSITORY / "docs" / "results")
    for each in (run_, cell_, page):
        each.add_argument("--results", type=Path, default=HERE, metavar="FOLDER", help="of results.jsonl")
    told_ = parser.parse_args()
    if told_.command == "page":
        from page import write_page

        write_page(told_.results, told_.docs)
    elif told_.command == "cell":
        case = {key: getattr(told_, key) for key in ("kind", "network", "method", "setting", "seed")}
        cell(told_.results, case, data=told_.data, weights=told_.weights)
    else:
        run(told_.budget, told_.results, data=told_.data, weights=told_.weights)


if __name__ == "__main__":
    main()
