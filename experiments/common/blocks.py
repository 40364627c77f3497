"""Parts of a page that compares arms: tables of accuracies and differences, what the rates say, where it comes from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.comparison import Comparison, Setting
from common.text import be, listed, table
from common.wording import accuracy_cell, detectable_cell, difference_cell, over_images_cell
from convpeft.reporting import format_count
from convpeft.reporting.provenance import Provenance, provenance_markdown


def accuracy_table(found: Comparison, headers: Sequence[str]) -> str:
    """A row an arm: what it trains, its accuracy in each setting, its rates; `headers` name the settings."""
    rows: list[tuple[str, ...]] = []
    for arm in found.arms:
        cells = [found.cell(arm, setting) for setting in found.settings]
        rates = ", ".join(f"{cell.runs[0]['lr']:.2g}" for cell in cells)
        trained = format_count(cells[0].runs[0]["trainable"])
        rows.append((f"`{arm}`", trained, *map(accuracy_cell, cells), rates))
    return table(("arm", "trained", *headers, "learning rates"), rows)


def difference_row(found: Comparison, arms: Sequence[str], others: Sequence[str], setting: Setting) -> tuple[str, ...]:
    """A difference with its interval, the one over the test images, and what would have been found."""
    gap = found.contrast(arms, others, setting)
    return difference_cell(gap), over_images_cell(gap), detectable_cell(gap)


def data_line(found: Comparison) -> str:
    """Which images are learnt from which weights."""
    content = found.content
    pixels = f" at {content['model']['image_size']} pixels" if "image_size" in content["model"] else ""
    patients = ""
    if content["test_groups"] is not None:
        count = format_count(len(set(content["test_groups"])))
        patients = f" of {count} patients; no patient is in two splits"
    return (
        f"{content['title']}: `{content['source']}` from `{content['model']['source']}`{pixels}, "
        f"{format_count(found.test_images)} test images{patients}."
    )


def unfinished_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """One line for each comparison with runs that are planned and not done."""
    return [
        f"{found.content['title']}: {found.content['planned']} runs are planned, {len(found.content['runs'])} are done "
        f"so far, and {found.used} are used here: settings and seeds that every arm has. The command below goes on."
        for found in comparisons
        if found.used < found.content["planned"]
    ]


def edges_told(edges: int, cells: int) -> str:
    """How many of the chosen rates lie at an end of what was tried."""
    return f"{edges} of {cells} chosen learning rates {be(edges)} the lowest or the highest that was tried"


def edges_line(comparisons: Sequence[Comparison], *, setting: str = "{}") -> str:
    """The same, and which; `setting` words one, as "{} a class"."""
    edges = [(found, *edge) for found in comparisons for edge in found.at_edge()]
    named = [
        f"`{arm}` at {setting.format(each)} on {found.content['title']} ({rate:.2g})"
        for found, arm, each, rate in edges
    ]
    told = edges_told(len(edges), sum(len(found.cells()) for found in comparisons))
    return told + (f": {listed(named)}. A wider range might do better there." if edges else ".")


def steps_told(comparisons: Sequence[Comparison]) -> str:
    """How many steps a training has: a number, or the least and the most."""
    steps = set[int]().union(*(found.steps for found in comparisons))
    return " to ".join(map(str, sorted({min(steps), max(steps)})))


def earlier_lines(become: Mapping[str, str], budget: str) -> list[str]:
    """What to say of a run whose figures were known when the one of this page was set up.

    Args:
        become: What is to be added, by budget: what it was like, and what has become of its verdicts.
        budget: Of the page. One that is not there had no such run.
    """
    if budget not in become:
        return []
    return [
        "A run came before this one, of fewer steps and with three rates an arm; too many of those chosen lay at an "
        "end of the range. Steps, trials and rates were changed for that, its figures being known (they are in the "
        f"history of the results file); arms, claims and images are as they were. {become[budget]}"
    ]


def provenance_block(name: str, budget: str, comparisons: Sequence[Comparison], *, detectable: str) -> str:
    """The commands, digests, trials and seeds behind a page, and how long it took."""
    content = [found.content for found in comparisons]
    made = Provenance(
        command="\n".join(
            [f"python experiments/{name}/run.py run --data DIR --budget {budget} --workers 2", *map(_direct, content)]
        ),
        page_command=f"python experiments/{name}/run.py page",
        base={f"{each['model']['source']} ({_weights(each)})": each["base_digest"] for each in content},
        data={f"{each['source']}, test split": each["test_digest"] for each in content},
        trials=content[0]["trials"],
        ranges=content[0]["ranges"],
        seeds=tuple(comparisons[0].seeds),
        detectable=detectable,
        versions=content[0]["versions"],
    )
    lines = [line for each in content for line in (*each["runs"], *each["tried"])]
    minutes = sum(line["seconds"] for line in lines) / 60
    return (
        provenance_markdown(made)
        + f"\n\nThe second and later commands, typed in DIR, are what the first one runs. {len(lines)} runs and trials "
        f"took {minutes:.0f} minutes of one thread each."
    )


def _direct(content: dict[str, Any]) -> str:
    words = [f"--set {shlex.quote(each)}" for each in content["assign"]]
    return " ".join(["convpeft compare", content["grid"], "--out OUT --workers 2", *words])


def _weights(content: dict[str, Any]) -> str:
    return Path(content["model"].get("weights", "as it comes")).name
