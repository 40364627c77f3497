"""The page of a comparison, as HTML and as Markdown, from the grid and its rows alone: equal rows give equal bytes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convpeft.comparing.grid import Grid
from convpeft.comparing.summary import Line, front, summarise
from convpeft.reporting import (
    Code,
    Figure,
    Notes,
    ReportContent,
    Section,
    Table,
    Text,
    figure_bytes,
    format_bytes,
    format_count,
    format_duration,
    printable,
    write_report,
    write_whole,
)
from convpeft.reporting.comparison import CostPoint, plot_costs, plot_learning
from convpeft.reporting.provenance import Provenance, provenance_lines, provenance_markdown

HTML, MARKDOWN = "comparison.html", "comparison.md"
_NOTHING = "-"
_HEADERS = (
    "Arm",
    "Seeds",
    "Test accuracy, mean ± sd [95 %]",
    "Against the baseline, points [95 %]",
    "Trained",
    "Adapter",
    "Epoch",
    "Peak memory",
    "Learning rate",
    "Trials",
)
_COSTS: dict[str, tuple[tuple[str, ...], Callable[[float], str]]] = {
    "trained parameters": (("trainable",), lambda value: format_count(round(value))),
    "time an epoch": (("measured", "epoch_seconds"), lambda value: format_duration(value)),
    "peak memory": (("measured", "peak_memory_bytes"), lambda value: format_bytes(round(value))),
}


def write_comparison(grid: Grid, rows: Mapping[str, dict[str, Any]], out: Path) -> None:
    """Write comparison.html and comparison.md, with the plots beside the latter.

    Raises:
        RunError: If a file cannot be written.
    """
    lines = summarise(grid, rows)
    pictures = _pictures(lines)
    made = _provenance(grid, rows, lines)
    for name, (_, image) in pictures.items():
        write_whole(out / "plots" / f"{name}.png", image)
    write_whole(out / MARKDOWN, _markdown(grid, lines, pictures, made).encode())
    write_report(out / HTML, _page(grid, lines, pictures, made))


def cells_of(line: Line, grid: Grid) -> tuple[str, ...]:
    """A line as the cells of the table."""
    name = f"{line.arm} ({line.setting})" if line.setting else line.arm
    seeds = f"{len(line.rows)}" if not line.failures else f"{len(line.rows)} ({len(line.failures)} failed)"
    if not line.rows:
        return (name, seeds, *[_NOTHING] * (len(_HEADERS) - 2))
    low, high = line.interval
    deviation = "" if line.deviation is None else f" ± {100 * line.deviation:.2f}"
    costs = [write(line.middle(*keys)) for keys, write in _COSTS.values()]
    return (
        name,
        seeds,
        f"{100 * line.mean:.2f} %{deviation} [{100 * low:.2f}, {100 * high:.2f}]",
        "baseline" if line.arm == grid.baseline else _gap(line),
        costs[0],
        format_bytes(round(line.middle("adapter_bytes"))),
        *costs[1:],
        line.rates,
        str(grid.tuning.trials if grid.tuning is not None and line.rows[0]["tuned"] else 0),
    )


def _gap(line: Line) -> str:
    found = line.against
    if found is None:
        return _NOTHING
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return f"{100 * found.mean:+.2f}{interval}{' ○' if found.within_noise else ''}"


def _provenance(grid: Grid, rows: Mapping[str, dict[str, Any]], lines: Sequence[Line]) -> Provenance:
    done = [row for line in lines for row in line.rows]
    bases = {_model_of(row): row["base_digest"] for row in done}
    tests = dict.fromkeys((row["recipe"]["data"]["source"], row["data_digests"]["test"]) for row in done)
    data = {f"{source}, test split ({number})": each for number, (source, each) in enumerate(tests, 1)}
    found = [line.against.detectable for line in lines if line.against and line.against.detectable is not None]
    detectable = (
        f"Differences of {100 * min(found):.2f} to {100 * max(found):.2f} points would have been found 8 times in 10 "
        "at the 5 % level, one by one; several comparisons at once find more by chance."
        if found
        else ""
    )
    return Provenance(
        command=_command(grid),
        base=bases,
        data=data,
        trials=0 if grid.tuning is None else grid.tuning.trials,
        ranges={} if grid.tuning is None else {key: each.told() for key, each in grid.tuning.ranges.items()},
        seeds=tuple(dict.fromkeys(cell.seed for cell in grid.cells)),
        detectable=detectable,
        versions={} if not done else done[0]["versions"],
    )


def _command(grid: Grid) -> str:
    assigned = "".join(f" --set {shlex.quote(each)}" for each in grid.assigned)
    return f"convpeft compare {shlex.quote(Path(grid.where).name)}{assigned} --out DIR"


def _model_of(row: Mapping[str, Any]) -> str:
    model = row["recipe"]["model"]
    return f"{model['source']} with {Path(model['weights']).name}" if "weights" in model else model["source"]


def _pictures(lines: Sequence[Line]) -> dict[str, tuple[str, bytes]]:
    """A caption and a picture for each setting, by the name of its file."""
    found: dict[str, tuple[str, bytes]] = {}
    for number, setting in enumerate(dict.fromkeys(line.setting for line in lines), 1):
        here = [line for line in lines if line.setting == setting and line.rows]
        if not here:
            continue
        where, suffix = (f" ({setting})", f"-{number}") if setting else ("", "")
        panels: dict[str, list[CostPoint]] = {}
        for name, (keys, _) in _COSTS.items():
            costs = [line.middle(*keys) for line in here]
            if min(costs) > 0:
                best = front([(cost, line.mean) for cost, line in zip(costs, here, strict=True)])
                panels[name] = [
                    CostPoint(line.arm, cost, line.mean, *line.interval, on_front=on)
                    for line, cost, on in zip(here, costs, best, strict=True)
                ]
        if panels:
            caption = "Ringed and joined: the Pareto front, which no arm beats in both. Bars are 95 % intervals."
            figure = plot_costs(panels, units={name: write for name, (_, write) in _COSTS.items()})
            found[f"costs{suffix}"] = (f"What accuracy costs{where}. {caption}", figure_bytes(figure))
        curves = {line.arm: [[e["val_accuracy"] for e in row["history"]] for row in line.rows] for line in here}
        caption = f"Learning curves{where}. Pale: each seed; bold: their mean."
        found[f"learning{suffix}"] = (caption, figure_bytes(plot_learning(curves)))
    return found


def _sentences(lines: Sequence[Line]) -> list[str]:
    return [
        f"{line.setting}: {line.against.sentence}" if line.setting else line.against.sentence
        for line in lines
        if line.against is not None
    ]


def _failures(lines: Sequence[Line]) -> list[str]:
    return [f"{line.arm}, seed {row['seed']}: {row['error']}" for line in lines for row in line.failures]


def _summary(grid: Grid, lines: Sequence[Line]) -> str:
    done, failed = sum(len(line.rows) for line in lines), sum(len(line.failures) for line in lines)
    missing = sum(line.missing for line in lines)
    told = f"{done} runs of {len(grid.arms)} arms, each compared with {grid.baseline} seed by seed."
    told += f" {failed} runs failed." if failed else ""
    return told + (f" {missing} runs are not done yet." if missing else "")


def _page(
    grid: Grid, lines: Sequence[Line], pictures: Mapping[str, tuple[str, bytes]], made: Provenance
) -> ReportContent:
    sections: list[Section] = [
        Table(
            "Arms",
            _HEADERS,
            tuple(cells_of(line, grid) for line in lines),
            caption="○: within noise. Times and memory are medians over the seeds.",
        )
    ]
    if sentences := _sentences(lines):
        sections.append(Text("Against the baseline", tuple(sentences)))
    if failures := _failures(lines):
        sections.append(Notes("Failures", tuple(failures), warning=True))
    for caption, image in pictures.values():
        title, _, rest = caption.partition(". ")
        sections.append(Figure(title, rest, image))
    sections += [Notes("How it was made", tuple(provenance_lines(made))), Code("Command", made.command)]
    return ReportContent(
        title="Comparison",
        summary=_summary(grid, lines),
        sections=tuple(sections),
        subtitle=Path(grid.where).name,
    )


def _markdown(grid: Grid, lines: Sequence[Line], pictures: Mapping[str, tuple[str, bytes]], made: Provenance) -> str:
    rows = [_HEADERS, tuple("---" for _ in _HEADERS), *(cells_of(line, grid) for line in lines)]
    table = "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
    blocks = ["# Comparison", _summary(grid, lines), table]
    blocks.append("○: within noise. Times and memory are medians over the seeds.")
    if sentences := _sentences(lines):
        blocks += ["## Against the baseline", "\n".join(f"- {each}" for each in sentences)]
    if failures := _failures(lines):
        blocks += ["## Failures", "\n".join(f"- {printable(each)}" for each in failures)]
    for name, (caption, _) in pictures.items():
        blocks.append(f"![{caption.partition('. ')[0]}](plots/{name}.png)\n\n{caption}")
    return "\n\n".join([*blocks, provenance_markdown(made)]) + "\n"
