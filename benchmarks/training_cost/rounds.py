"""A group of modes that take turns: in each round every process trains some steps, the last on the clock."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crew import LostError, Member
from plan import BASELINES, MODES, UNTIMED_STEPS, Cell

TRIAL_STEPS = 2  # of each layout, to find the faster one

Row = dict[str, Any]


def measure(cells: Sequence[Cell], *, rounds: int, threads: int) -> list[Row]:
    """One row a cell; both baselines are measured with them, and have rows too where they are among the cells."""
    first = cells[0]
    names = BASELINES[MODES[first.mode].against]
    wanted = {cell.key for cell in cells}
    missing = [Cell(first.net, name, first.batch, first.size, device=first.device) for name in names]
    every = [*(cell for cell in missing if cell.key not in wanted), *cells]
    rows: dict[str, Row] = {cell.key: {"cell": cell.key, **_about(cell)} for cell in every}
    with contextlib.ExitStack() as stack:
        crew = _start(every, rows, stack, threads=threads)
        times: dict[str, list[float]] = {key: [] for key in crew}
        for number in range(rounds):
            order = list(crew)
            for key in order[number % len(order) :] + order[: number % len(order)]:  # nobody is first always
                with _losing(rows[key], crew, key):
                    times[key].append(crew[key].ask("step"))
        for key, member in list(crew.items()):
            with _losing(rows[key], crew, key):
                rows[key] |= member.ask("count")
            if key in crew and MODES[member.cell.mode].merges and not member.cell.first:
                with _losing(rows[key], crew, key, fatal=False):
                    rows[key] |= member.ask("merge")
    for key in crew:
        rows[key]["times"] = [round(value, 5) for value in times[key]]
    return _compare(rows, [cell.key for cell in missing], wanted)


def _about(cell: Cell) -> Row:
    fields = ("net", "mode", "batch", "size", "rank", "first", "layout")
    return {name: getattr(cell, name) for name in fields} | {"untimed": UNTIMED_STEPS}


def _start(
    cells: Sequence[Cell], rows: dict[str, Row], stack: contextlib.ExitStack, *, threads: int
) -> dict[str, Member]:
    """The processes that built their networks and made their first steps, in the fastest layout of each."""

    def begin(cell: Cell) -> tuple[Member, Row | LostError]:
        member = Member(cell, threads=threads)
        stack.callback(member.close)
        try:
            member.build()
            return member, member.ask("start")
        except LostError as error:
            member.close()
            return member, error

    begun: dict[str, list[tuple[Member, Row | LostError]]] = {}
    with ThreadPoolExecutor(max(2, threads)) as pool:
        single = [cell for cell in cells if len(MODES[cell.mode].layouts) == 1]
        firsts = pool.map(begin, [cell.laid_out(MODES[cell.mode].layouts[0]) for cell in single])
        begun |= {cell.key: [found] for cell, found in zip(single, firsts, strict=True)}
        for cell in cells:
            if cell.key not in begun:  # one after the other, so that losers are gone before the next begin
                found = list(pool.map(begin, map(cell.laid_out, MODES[cell.mode].layouts)))
                begun[cell.key] = _fastest(found)
    crew: dict[str, Member] = {}
    for cell in cells:
        member, facts = begun[cell.key][0]
        if isinstance(facts, LostError):
            rows[cell.key] |= _failure(facts)
        else:
            rows[cell.key] |= facts | {"layout": member.cell.layout}
            crew[cell.key] = member
    return crew


def _fastest(begun: list[tuple[Member, Row | LostError]]) -> list[tuple[Member, Row | LostError]]:
    """The one that takes least time for a step, the others closed; whoever fails is out."""
    best: dict[int, float] = {}
    for _ in range(TRIAL_STEPS):
        for index, (member, facts) in enumerate(begun):
            if not isinstance(facts, LostError):
                with contextlib.suppress(LostError):
                    best[index] = min(best.get(index, math.inf), member.ask("step"))
    kept = min(best, key=lambda index: best[index]) if best else 0
    for index, (member, _) in enumerate(begun):
        if index != kept:
            member.close()
    return [begun[kept]]


@contextlib.contextmanager
def _losing(row: Row, crew: dict[str, Member], key: str, *, fatal: bool = True) -> Iterator[None]:
    """Whoever fails is out of the crew, or has only no figure of its own here."""
    try:
        yield
    except LostError as error:
        if fatal:
            crew.pop(key).close()
            row |= _failure(error)
        else:
            row["inference_error"] = str(error)


def _failure(error: LostError) -> Row:
    return {"error": str(error), "absent": error.absent}


def _compare(rows: dict[str, Row], baselines: Sequence[str], wanted: set[str]) -> list[Row]:
    """Note beside every row the baseline that was the faster one in these rounds, and its figures."""
    from measures import pairwise, spread

    alive = [key for key in baselines if "times" in rows[key]]
    if not alive:
        reason = rows[baselines[0]].get("error", "")
        return [rows[key] | {"error": f"no baseline: {reason}", "absent": False} for key in rows if key in wanted]
    best = min(alive, key=lambda key: spread(rows[key]["times"])[1])
    base = rows[best]
    for row in rows.values():
        if "times" in row:
            row["baseline"] = base["mode"]
            row["ratios"] = [round(ratio, 4) for ratio in pairwise(row["times"], base["times"])]
            row["of_baseline"] = {name: base[name] for name in ("saved_bytes", "memory_bytes")} | {
                "operations": base["operations_forward"] + base["operations_backward"],
                "seconds": spread(base["times"])[1],
            }
    return [rows[key] for key in rows if key in wanted]
