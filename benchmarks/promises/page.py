"""docs/promises.md: each promise, the tests that attack it and what they measured last."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from textwrap import indent
from typing import Any

from results import HERE, RESULTS, ROOT, Promise, promises

sys.path.insert(0, str(HERE.parent))

from mutants.results import markdown_table, read_records

PAGE = ROOT / "docs" / "promises.md"
_FORM = {"full": "in full", "fast": "in the reduced form"}


def render() -> str:
    """The page, from the committed results alone."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    every = promises()
    states = {each.id: _state(results.get(each.id, {})) for each in every}
    kept = sum(state == "holds" for state in states.values())
    open_ = sum(state == "not built yet" for state in states.values())
    parts = [
        "# Promises",
        "What convpeft guarantees, which tests attack each guarantee, and what they measured last. The page is written "
        "by `make promises` from `docs/results/promises.json`; nothing in it is typed. "
        "[How to repeat it](#how-to-repeat-it) is at the end.",
        f"**{kept} of {len(every)} promises hold, {len(every) - kept - open_} do not, {open_} are not built yet.** "
        'A "random network" is made of convolutions with kernels of 1 to 7, strides and dilations of 1 to 3, groups up '
        "to depthwise, every padding and padding mode, in one to three dimensions and transposed, with norms, residual "
        "links, layers that run twice and a linear head; every adapter tensor is perturbed before a comparison.",
    ]
    for title in dict.fromkeys(each.title for each in every):
        group = [each for each in every if each.title == title]
        parts += [f"## {title}", _table(group, states), *(_details(each, results.get(each.id)) for each in group)]
    parts += [_attacked(), _REPEAT]
    return "\n\n".join(part for part in parts if part) + "\n"


def _state(result: Mapping[str, Any]) -> str:
    chosen = _chosen(result)
    if chosen is None:
        return "not built yet"
    outcomes = chosen[1]["tests"].values()
    if any(each["failed"] for each in outcomes) or not any(each["passed"] for each in outcomes):
        return "does not hold"
    return "holds"


def _chosen(result: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """The fullest measurement there is."""
    for form in _FORM:
        if result and form in result:
            return form, result[form]
    return None


def _table(group: list[Promise], states: Mapping[str, str]) -> str:
    rows = [f"| {each.id} | {each.statement} | {each.passes} | {states[each.id]} |" for each in group]
    return "\n".join(["| | promise | holds when | state |", "|---|---|---|---|", *rows])


def _details(promise: Promise, result: Mapping[str, Any] | None) -> str:
    chosen = _chosen(result)
    if chosen is None:
        return ""
    form, measured = chosen
    count = sum(sum(each.values()) for each in measured["tests"].values())
    parts = [f'??? note "{promise.id}: {count:,} tests, measured {_FORM[form]}"']
    if measured["figures"]:
        rows = [f"    | {name} | {_number(value)} |" for name, value in measured["figures"].items()]
        parts.append("\n".join(["    | figure | |", "    |---|---:|", *rows]))
    parts.append("\n".join(f"    - `{name}`: {_outcomes(count)}" for name, count in measured["tests"].items()))
    parts.append(f"    Source {', '.join(measured['source'])}, PyTorch {measured['versions']['torch']}.")
    return "\n\n".join(parts)


def _outcomes(count: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in count.items() if number)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value >= 1 else f"{value:.2g}"


def _attacked() -> str:
    """The faults planted into the source, and who caught each."""
    path = RESULTS.with_name("mutants.json")
    if not path.is_file():
        return ""
    faults = read_records(path).values()
    caught = sum(fault["caught_by"] is not None for fault in faults)
    text = (
        "## The tests themselves, attacked\n\nA test that cannot fail promises nothing. `make mutants` plants faults "
        "into a copy of the source, one by one, and runs the tests that are meant to notice: "
        f"**{caught} of {len(faults)} are caught.**"
    )
    return f'{text}\n\n??? note "All {len(faults)} faults"\n\n{indent(markdown_table(path), " " * 4)}'


_REPEAT = """## How to repeat it

```sh
make promises ARGS="--fast"              # every promise, reduced, under five minutes
make promises                            # every promise in full: hours; goes on where it was stopped
make promises ARGS="--group faults"      # one group: correct, input, faults, safe or load
make promises ARGS="--only C01 C02"      # some promises
make mutants                             # the planted faults
```

What has been measured of the same source is not measured again; `--again` does. Beside other libraries under the same
attack: [correctness](results/correctness.md)."""
