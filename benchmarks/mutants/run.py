"""Plant every fault, one at a time, and print which test caught it: `python benchmarks/mutants/run.py`.

The exit status is 1 if a fault survives, or if nothing can be said of it. The project itself is not touched: faults
are planted in temporary copies, which are gone at the end, however that comes.
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mutants.fault import Fault
from mutants.faults import FAULTS
from mutants.planting import Outcome, Runs, Tree
from mutants.results import RESULTS, is_of, read_records, record_of, write_records


def main(arguments: Sequence[str] | None = None, faults: Sequence[Fault] = FAULTS) -> int:
    """Run the command and return its exit status."""
    options = _parse(arguments, faults)
    chosen = [fault for fault in faults if not options.only or fault.name in options.only]
    # A part of the faults, or the rest of them, goes beside what is known of the others.
    known = read_records(options.json) if options.only or options.resume else {}
    records = {fault.name: known[fault.name] for fault in faults if is_of(known.get(fault.name), fault)}
    left = [fault for fault in chosen if not options.resume or (records.get(fault.name) or {}).get("caught_by") is None]
    console = Console(stderr=True)
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if main_thread else None
    try:
        outcomes = _plant(left, jobs=options.jobs, console=console, records=records, path=options.json)
    except KeyboardInterrupt:
        console.print(f"Stopped. Go on with --resume; {len(records)} of {len(faults)} faults are known.")
        return 130
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    _print_table(outcomes, known=len(chosen) - len(left))
    return int(any(outcome.caught_by is None or outcome.problem for outcome in outcomes))


def _parse(arguments: Sequence[str] | None, faults: Sequence[Fault]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="plant this fault alone; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="faults at once (default: 2)")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where the results go")
    parser.add_argument("--resume", action="store_true", help="leave out what is known to be caught already")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs: expected 1 or more")
    unknown = set(options.only or ()) - {fault.name for fault in faults}
    if unknown:
        parser.error(f"--only: there is no fault {min(unknown)!r}; see benchmarks/mutants/faults.py")
    return options


def _plant(
    faults: Sequence[Fault], *, jobs: int, console: Console, records: dict[str, dict[str, object]], path: Path
) -> list[Outcome]:
    """Plant faults in as many copies as there are jobs, noting each as soon as it is known."""
    outcomes: list[Outcome] = []
    runs, trees = Runs(), queue.Queue[Tree]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="convpeft-mutants-") as folder,
        ThreadPoolExecutor(jobs) as pool,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        try:
            first = _copy(Path(folder, "0"), runs)
            trees.put(first)
            for number in range(1, min(jobs, len(faults))):
                trees.put(_copy(Path(folder, str(number)), runs, of=Path(folder, "0")))
            bar = progress.add_task("tests without any fault", total=len(faults))
            bad = _find_bad_tests(first, faults)
            progress.update(bar, description="planted faults")

            def attempt(fault: Fault) -> Outcome:
                unusable = [each for each in bad if fault.names(each)]
                if unusable:
                    return Outcome(fault, None, f"{unusable[0]} does not pass where there is no fault")
                tree = trees.get()
                try:
                    return tree.attempt(fault)
                finally:
                    trees.put(tree)

            for future in as_completed([pool.submit(attempt, fault) for fault in faults]):
                outcome = future.result()
                outcomes.append(outcome)
                if not outcome.problem:
                    records[outcome.fault.name] = record_of(outcome)
                    write_records(path, records.values())
                if outcome.caught_by is None:
                    reason = outcome.problem or "no named test caught it"
                    console.print(f"[red]survived[/red] {escape(outcome.fault.name)}: {escape(reason)}")
                progress.advance(bar)
        except BaseException:
            runs.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return sorted(outcomes, key=lambda outcome: (outcome.fault.file, outcome.fault.name))


def _copy(folder: Path, runs: Runs, **of: Path) -> Tree:
    folder.mkdir()
    return Tree(folder, runs, **of)


def _find_bad_tests(tree: Tree, faults: Sequence[Fault]) -> list[str]:
    """Tests meant to catch a fault that do not pass where there is none, and so can catch nothing.

    Raises:
        SystemExit: If the tests cannot be run at all.
    """
    tests = sorted({test for fault in faults for test in fault.tests})
    if not tests:
        return []
    reports = tree.test(tests, limit=3600)
    if reports.problem:
        raise SystemExit(reports.problem)
    return [*reports.failed, *reports.skipped]


def _print_table(outcomes: Sequence[Outcome], *, known: int) -> None:
    table = Table("fault", "promises", "seconds", title="Planted faults", title_justify="left")
    table.add_column("caught by", overflow="fold")
    for outcome in outcomes:
        caught = escape(outcome.caught_by) if outcome.caught_by else "[red]survived[/red]"
        if outcome.problem:
            caught = f"[red]{escape(outcome.problem)}[/red]"
        seconds = f"{outcome.seconds:.1f}"
        table.add_row(escape(outcome.fault.name), ", ".join(outcome.fault.promises), seconds, caught)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    caught_number = sum(outcome.caught_by is not None for outcome in outcomes)
    before = f" {known} more were known to be caught." if known else ""
    console.print(f"{caught_number} of {len(outcomes)} planted faults were caught.{before}")


def _end(number: int, _: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")


if __name__ == "__main__":
    sys.exit(main())
