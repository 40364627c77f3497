"""`convpeft robustness`: measure a run on corrupted images, print the figures and write them beside it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from convpeft.commands.corrupting import Measured, Wanted, measure
from convpeft.commands.evaluating import images_of, recipe_of, slug
from convpeft.console import command_line, print_json, say, show_table
from convpeft.data.corruptions import choose_table, read_names, read_severities
from convpeft.errors import DataError, OptionError
from convpeft.training.recipe import Recipe


def measure_path(
    path: Path,
    *,
    corruptions: str | None,
    severities: str,
    table: str,
    limit: int | None,
    data: str | None,
    split: str | None,
    weights: Path | None,
    against: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure a run or an adapter on corrupted images and write the figures beside it."""
    names, chosen = read_names(corruptions or "all"), read_severities(severities)
    choose_table((1, 1), table)
    wanted = Wanted(names, corruptions is not None, chosen, table, limit, data, split, as_json)
    from convpeft.adapter_file import find_adapter

    for each in (path, *([against] if against else [])):
        find_adapter(each)
    recipe = recipe_of(path)
    if data is None and recipe is None:
        raise OptionError(f"{path}: is no run, so it names no images. Give --data.")
    told: list[str] = []
    measured = measure(path, recipe, wanted, weights=weights, force=force, told=told)
    facts: dict[str, Any] = {
        "run": str(path),
        "data": measured.data,
        "source": "regenerated" if measured.origin.regenerated else "files",
        "of_images": measured.of_images,
        "trained_on": list(measured.origin.trained_on),
        "notes": list(measured.origin.notes),
        **measured.robustness.to_dict(),
    }
    if force:
        facts["forced"] = told
    if against is not None:
        facts["against"] = _compare(path, against, measured, wanted)
    target = out if out is not None else (path / "robustness" / slug(measured.data) if recipe else None)
    if target is not None:
        _write(target, path, measured, facts)
    if as_json:
        print_json(facts)
        return
    _show(measured, facts)
    if target is not None:
        say(f"report: {target / 'report.html'}")


def _compare(path: Path, other: Path, mine: Measured, wanted: Wanted) -> dict[str, Any]:
    """Measure another run on the same corrupted images, and pair the two."""
    theirs = recipe_of(other)
    if wanted.data is None:
        if theirs is None:
            raise OptionError(f"{other}: is no run, so it names no images to pair. Give --data.")
        _check_same_images(path, other, theirs, wanted)
    measured = measure(
        other, theirs if wanted.data is None else recipe_of(path), wanted, weights=None, force=False, told=[]
    )
    robustness, theirs_too = mine.robustness, measured.robustness
    found: dict[str, Any] = {"run": str(other), **theirs_too.to_dict()}
    found["differences"] = {}
    from convpeft.evaluation.robustness import MEASURES

    scopes = {key: names for key, names in MEASURES.items() if robustness.has(names)}
    if "mca_15" not in scopes:
        scopes = {"all": robustness.names, **scopes}
    over = f"{len(robustness.severities)} severities"
    for key, names in scopes.items():
        paired = robustness.minus(theirs_too, names)
        what = f"{key.replace('mca_', 'mCA-')}, {over}, {'regenerated' if mine.origin.regenerated else 'from files'}"
        found["differences"][key] = {
            "difference": paired.delta,
            "low": paired.interval[0],
            "high": paired.interval[1],
            "sentence": paired.describe(str(path), str(other), what),
        }
    return found


def _check_same_images(path: Path, other: Path, theirs: Recipe, wanted: Wanted) -> None:
    """Refuse a pair of runs whose test images differ: one may have been trained on those of the other."""
    ours = recipe_of(path)
    told = [images_of(each, data=None, split=wanted.split) for each in (ours, theirs)]
    first, second = ((dataset.spec, dataset.split(split).ids) for dataset, split in told)
    if first != second:
        raise DataError(
            f"{other}: has other images for testing than {path}, so the two cannot be measured in pairs. "
            "Train both with equal data, folds and seed."
        )


def _write(target: Path, path: Path, measured: Measured, facts: dict[str, Any]) -> None:
    from convpeft.reporting import (
        Code,
        Figure,
        Notes,
        ReportContent,
        figure_bytes,
        save_figure,
        write_report,
        write_whole,
    )
    from convpeft.reporting.corruptions import plot_contact_sheet, plot_robustness
    from convpeft.reporting.robustness import robustness_sections

    robustness = measured.robustness
    write_whole(target / "robustness.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    save_figure(plot_robustness(robustness), target / "plots" / "robustness.png")
    shown = {
        name: [
            measured.source.planes(name, severity, measured.first).permute(1, 2, 0).numpy()
            for severity in robustness.severities
        ]
        for name in robustness.names
    }
    sheet = plot_contact_sheet(shown, [f"severity {each}" for each in robustness.severities])
    against = [each["sentence"] for each in facts.get("against", {}).get("differences", {}).values()]
    kind = "regenerated" if measured.origin.regenerated else "from files"
    write_report(
        target / "report.html",
        ReportContent(
            title=f"Robustness on {measured.data}",
            subtitle=f"{path} · corruptions {kind}",
            summary=_summary(measured),
            sections=(
                *robustness_sections(robustness, measured.origin),
                *([Notes("Against another run", tuple(against))] if against else []),
                *([Notes("Forced", tuple(facts["forced"]), warning=True)] if facts.get("forced") else []),
                Figure(
                    f"What the corruptions look like ({kind})",
                    "One image under every corruption and severity.",
                    figure_bytes(sheet),
                ),
                Code("Command", shlex.join(command_line())),
            ),
        ),
    )


def _summary(measured: Measured) -> str:
    from convpeft.reporting import format_interval
    from convpeft.reporting.robustness import measures_of

    means = ", ".join(
        f"{label} {format_interval(m.accuracy, m.interval)}" for label, m in measures_of(measured.robustness)
    )
    return f"{means}; {measured.origin.told}, {measured.robustness.n:,} images a severity."


def _show(measured: Measured, facts: dict[str, Any]) -> None:
    from convpeft.reporting import format_interval
    from convpeft.reporting.robustness import measures_of

    robustness = measured.robustness
    rows = [
        (label, format_interval(mean.accuracy, mean.interval), f"{1 - mean.accuracy:.1%}")
        for label, mean in measures_of(robustness)
    ]
    show_table(f"{measured.data}, {measured.origin.told}", ("", "accuracy", "error"), rows)
    table = [
        (
            name + (" (trained on)" if name in measured.origin.trained_on else ""),
            *(f"{share:.1%}" for share in shares),
            f"{sum(shares) / len(shares):.1%}",
        )
        for name, shares in zip(robustness.names, robustness.accuracies.tolist(), strict=True)
    ]
    kind = "regenerated" if measured.origin.regenerated else "from files"
    headers = ("corruption", *map(str, robustness.severities), "mean")
    show_table(f"accuracy by severity ({kind})", headers, table)
    for note in measured.origin.notes:
        say(f"note: {note}")
    for each in facts.get("against", {}).get("differences", {}).values():
        say(each["sentence"])
