"""What training costs, in time and memory: measure what is missing, then write the results and the page.

python benchmarks/training_cost/run.py                            # all; goes on where it stopped
python benchmarks/training_cost/run.py --nets resnet18 --modes default,lean,peft-lora --out DIR
python benchmarks/training_cost/run.py --device cuda --rounds 12  # the first table on a GPU, with a page of its own
python benchmarks/training_cost/run.py --fast --out DIR           # does everything work? The numbers mean nothing
python benchmarks/training_cost/run.py page                       # the page from the JSON file
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from plan import FAST, GROUPS, GROWTH_ROUNDS, MODES, NETS, ROUNDS, SELDOM, SIZE, growth_groups, method_groups  # noqa: E402

NAME = "training_cost"
TABLES = ("methods", "growth", "prefix", "loader")
PREFIX_SIZES = (SIZE, 224)  # the last stage has a larger share of small images
PREFIX_NETS, LOADER_NETS = ("resnet18", "resnet50"), ("resnet18", "mobilenetv3_small_100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("run", "page"), default="run")
    parser.add_argument("--nets", type=_words, help=f"of {', '.join(NETS)}")
    parser.add_argument(
        "--modes", type=_words, help=f"of {', '.join(MODES)}; without {' and '.join(SELDOM)} by default"
    )
    parser.add_argument("--only", type=_words, default=list(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--rounds", type=int, help=f"of the methods ({ROUNDS}); growth takes half of them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--fast", action="store_true", help="one small network, few modes, two rounds")
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "runs" / NAME, help="where unfinished work is kept")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "docs" / "results", help="of JSON file, page and plots"
    )
    told = parser.parse_args()
    _fill_in(told)
    for given, known in ((told.nets, NETS), (told.modes, MODES), (told.only, TABLES)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"there is no {unknown[0]!r}; there are: {', '.join(known)}")
    told.out.mkdir(parents=True, exist_ok=True)
    path = told.out / f"{NAME if told.device == 'cpu' else f'{NAME}_gpu'}.json"
    if told.command == "run":
        _write(path, measure(told))
    from page import write_page

    write_page(json.loads(path.read_text(encoding="utf-8")), told.out)


def _fill_in(told: argparse.Namespace) -> None:
    """What was not said."""
    seldom = SELDOM if told.device == "cpu" else (*SELDOM, "keras-lora", "keras-full")
    usual = list(FAST) if told.fast else [mode for mode in MODES if mode not in seldom]
    if told.device != "cpu":
        told.only = ["methods"]
    told.nets = told.nets or (["resnet18"] if told.fast else list(NETS))
    told.modes = told.modes or usual
    told.rounds = told.rounds or (2 if told.fast else ROUNDS)


def measure(told: argparse.Namespace) -> dict[str, Any]:
    """Everything that is asked for and not there yet; then the content of the results."""
    from crew import prepare
    from facts import machine, source_digest, versions
    from store import Store

    prepare(told.threads)
    facts = {"machine": machine(told.threads, told.device), "versions": versions()}
    store = Store(told.work, facts | {"rounds": told.rounds, "fast": told.fast}, source_digest())
    if told.again:
        store.forget()
    print(f"about {_foretell(told):.0f} minutes on two quiet cores, less what is there already", flush=True)
    if os.getloadavg()[0] > 0.5 and not told.fast:
        print("the machine is not quiet: other processes take time, and the spread will be wide", flush=True)
    began = time.perf_counter()
    growth = growth_groups(fast=told.fast)
    if "methods" in told.only:
        for group in method_groups(told.nets, told.modes, fast=told.fast, device=told.device):
            _groups(store, "methods", group, told, rounds=told.rounds)
    if "growth" in told.only:
        for what, groups in growth.items():
            for group in groups:
                _groups(store, what, group, told, rounds=max(2, told.rounds * GROWTH_ROUNDS // ROUNDS))
    for net in [net for net in PREFIX_NETS if "prefix" in told.only and net in told.nets]:
        for size in PREFIX_SIZES[:1] if told.fast else PREFIX_SIZES:
            _alone(store, "prefix", net, told, size=size)
    for net in [net for net in LOADER_NETS if "loader" in told.only and net in told.nets]:
        _alone(store, "loader", net, told)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
    groups = method_groups(told.nets, told.modes, fast=told.fast, device=told.device)
    wanted = [cell.key for group in groups for cell in group]
    rows = store.read("methods")
    return {
        "command": " ".join(["python benchmarks/training_cost/run.py", *_told(sys.argv[1:])]),
        "rounds": told.rounds,
        "trial": told.fast,
        **facts,
        "methods": [rows[key] for key in wanted if key in rows],
        "growth": {what: list(store.read(what).values()) for what in growth},
        "prefix": list(store.read("prefix").values()),
        "loader": list(store.read("loader").values()),
    }


def _groups(store: Any, table: str, group: list[Any], told: argparse.Namespace, *, rounds: int) -> None:
    from measures import spread
    from rounds import measure as measure_group

    known = store.read(table)
    missing = [cell for cell in group if cell.key not in known]
    if not missing:
        return
    names = ", ".join(cell.mode if table == "methods" else cell.key.split(" ", 2)[2] for cell in missing)
    print(f"{table} {missing[0].net}: {names}", flush=True)
    for row in measure_group(missing, rounds=rounds, threads=told.threads):
        store.add(table, row["cell"], row, own=MODES[row["mode"]].library == "convpeft")
        if "error" in row:
            print(f"  {row['cell']}: {row['error']}", flush=True)
        else:
            saved = row["saved_bytes"] / row["of_baseline"]["saved_bytes"]
            print(f"  {row['cell']}: time {spread(row['ratios'])[1]:.3f}, saved {saved:.3f}", flush=True)


def _alone(store: Any, table: str, net: str, told: argparse.Namespace, **words: int) -> None:
    from crew import LostError, alone

    key = net if words.get("size", SIZE) == SIZE else f"{net} {words['size']}"
    if key in store.read(table):
        return
    print(f"{table} {key}", flush=True)
    try:
        row = alone(table, {"net": net, "fast": told.fast, "threads": told.threads, **words}, threads=told.threads)
    except LostError as error:
        row = {"error": str(error)}
        print(f"  {error}", flush=True)
    store.add(table, key, {"net": net} | row, own=True)


def _foretell(told: argparse.Namespace) -> float:
    """Minutes, roughly: every process takes some seconds and some steps beside the rounds."""
    if told.fast:
        return 0.5
    chosen = [[mode for mode in group if mode in told.modes] for group in GROUPS]
    total = 0.0
    if "methods" in told.only:
        for net in told.nets:
            for group in filter(None, chosen):
                processes = sum(len(MODES[mode].layouts) for mode in group) + 2
                total += processes * (1.2 + 5 * NETS[net].seconds) + (len(group) + 2) * told.rounds * NETS[net].seconds
                total += sum(MODES[mode].merges for mode in group) * 6 * NETS[net].seconds
    total += 180 * ("growth" in told.only) + 900 * ("prefix" in told.only) + 60 * ("loader" in told.only)
    return total / 60


def _told(words: list[str]) -> list[str]:
    """The command without what names a folder or changes no number."""
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--again", "run") and not word.startswith(("--out", "--work")):
            kept.append(word)
        skip = word in ("--out", "--work")
    return kept


def _write(path: Path, content: dict[str, Any]) -> None:
    from convpeft.reporting import write_whole

    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    main()
