"""`convpeft robustness`: measure a run on corrupted images, print the figures and write them beside it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.commands.evaluating import images_of, recipe_of, slug
from convpeft.console import command_line, counting, print_json, say, show_table, warnings_as_lines
from convpeft.data.corruptions import ALL, choose_table, read_names, read_severities
from convpeft.errors import DataError, OptionError
from convpeft.training.recipe import Recipe

if TYPE_CHECKING:
    from convpeft.data import Dataset
    from convpeft.evaluation.corrupted import CorruptedSource
    from convpeft.evaluation.inference import Classifier
    from convpeft.evaluation.robustness import Robustness
    from convpeft.reporting.robustness import Origin

_FILES = "cifar-c:"
_SHEET = "What the corruptions look like"


@dataclass(frozen=True)
class _Measured:
    """What one model's measurement is of."""

    robustness: Robustness
    origin: Origin
    data: str
    of_images: int
    source: CorruptedSource
    first: int  # the image to show


@dataclass(frozen=True)
class _Wanted:
    """What is to be measured."""

    names: tuple[str, ...]
    given: bool  # whether somebody named them
    severities: tuple[int, ...]
    table: str
    limit: int | None
    data: str | None
    split: str | None
    quiet: bool


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
    wanted = _Wanted(names, corruptions is not None, chosen, table, limit, data, split, as_json)
    from convpeft.adapter_file import find_adapter

    for each in (path, *([against] if against else [])):
        find_adapter(each)
    recipe = recipe_of(path)
    if data is None and recipe is None:
        raise OptionError(f"{path}: is no run, so it names no images. Give --data.")
    told: list[str] = []
    measured = _measure(path, recipe, wanted, weights=weights, force=force, told=told)
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


def _measure(
    path: Path, recipe: Recipe | None, wanted: _Wanted, *, weights: Path | None, force: bool, told: list[str]
) -> _Measured:
    from convpeft.evaluation.inference import load_classifier

    with warnings_as_lines() as lines:
        classifier = load_classifier(path, weights=weights, force=force)
    told += lines
    if wanted.data is not None and wanted.data.startswith(_FILES):
        return _from_files(classifier, recipe, wanted)
    dataset, split = images_of(recipe, data=wanted.data, split=wanted.split)
    return _regenerated(classifier, recipe, wanted, dataset, split)


def _regenerated(
    classifier: Classifier, recipe: Recipe | None, wanted: _Wanted, dataset: Dataset, split: str
) -> _Measured:
    """Corrupt the images of a split on the spot."""
    from convpeft.evaluation.corrupted import (
        Regenerated,
        choose_numbers,
        labels_for,
        measure_clean,
        measure_robustness,
    )
    from convpeft.reporting.robustness import Origin

    images = dataset.split(split)
    labels = labels_for(classifier, dataset, images)
    numbers = choose_numbers(labels, wanted.limit)
    source = Regenerated(images, classifier.preprocessing, table=wanted.table)
    height, width = source.size
    notes = [
        f"Regenerated: convpeft's own corruptions, with the constants of {_BENCHMARKS[source.table]}, at {height} x "
        f"{width} pixels. They are close to the published files, not equal to them: compare models with each other, "
        "not with figures from those files."
    ]
    if "frost" in wanted.names:
        notes.append("Frost: crystals made by a formula, where the published sets use photographs.")
    if "rain" in wanted.names:
        notes.append("Rain: not part of CIFAR-10-C or ImageNet-C; its constants are convpeft's own.")
    notes += _limit_notes(wanted, len(numbers), len(images))
    clean = measure_clean(classifier, images, labels, numbers)
    robustness = _run(measure_robustness, classifier, source, labels, numbers, wanted, wanted.names, clean)
    told = f"regenerated with the constants of {_BENCHMARKS[source.table]}"
    origin = Origin(True, told, tuple(notes), _trained_on(recipe))
    return _Measured(robustness, origin, f"{dataset.spec} ({split})", len(images), source, int(numbers[0]))


def _from_files(classifier: Classifier, recipe: Recipe | None, wanted: _Wanted) -> _Measured:
    """Read the published files of CIFAR-10-C or CIFAR-100-C."""
    from convpeft.data import Dataset
    from convpeft.data.cifar_c import open_cifar_c
    from convpeft.evaluation.corrupted import FromFiles, choose_numbers, labels_for, measure_robustness
    from convpeft.reporting.robustness import Origin

    spec = wanted.data or ""
    if wanted.split is not None or wanted.table != "auto":
        raise OptionError("--split and --table have no part in files that are corrupted already. Leave them out.")
    files = open_cifar_c(Path(spec.removeprefix(_FILES)).expanduser())
    names = wanted.names if wanted.given and set(wanted.names) != set(ALL) else files.names
    split = files.split(names[0], 1)
    for name in names:
        files.split(name, 1)  # a corruption without a file is refused before work
    labels = labels_for(classifier, Dataset(spec, files.classes, split, split, split), split)
    numbers = choose_numbers(labels, wanted.limit)
    notes = [f"Read from the files of {spec}: {len(files.classes)} classes, {files.count:,} images a severity."]
    notes += _limit_notes(wanted, len(numbers), files.count)
    clean = None
    if recipe is not None:
        try:
            clean, note = _clean_of(classifier, recipe, wanted)
            notes.append(note)
        except DataError as error:
            notes.append(f"The accuracy on clean images is not known, for the run's own are not there: {error}")
    source = FromFiles(files, classifier.preprocessing)
    robustness = _run(measure_robustness, classifier, source, labels, numbers, wanted, names, clean)
    origin = Origin(False, f"CIFAR-{len(files.classes)}-C, read from files", tuple(notes), _trained_on(recipe))
    return _Measured(robustness, origin, spec, files.count, source, int(numbers[0]))


def _run(
    measure: Any,
    classifier: Classifier,
    source: CorruptedSource,
    labels: Any,
    numbers: Any,
    wanted: _Wanted,
    names: tuple[str, ...],
    clean: Any,
) -> Robustness:
    with counting(len(names) * len(wanted.severities) * len(numbers), quiet=wanted.quiet) as progress:
        return measure(
            classifier,
            source,
            labels,
            numbers=numbers,
            names=names,
            severities=wanted.severities,
            clean=clean,
            progress=progress,
        )


def _clean_of(classifier: Classifier, recipe: Recipe, wanted: _Wanted) -> tuple[Any, str]:
    """The accuracy on the run's own test images, as they are."""
    from convpeft.evaluation.corrupted import choose_numbers, labels_for, measure_clean

    dataset, split = images_of(recipe, data=None, split=None)
    images = dataset.split(split)
    labels = labels_for(classifier, dataset, images)
    numbers = choose_numbers(labels, wanted.limit)
    note = f"Clean: {len(numbers):,} of {len(images):,} images of {dataset.spec} ({split})."
    return measure_clean(classifier, images, labels, numbers), note


_BENCHMARKS = {"cifar": "CIFAR-10-C", "imagenet": "ImageNet-C"}


def _limit_notes(wanted: _Wanted, taken: int, count: int) -> list[str]:
    notes = [] if taken == count else [f"Only {taken:,} of {count:,} images were measured, stratified by class."]
    if len(wanted.severities) < 5:
        notes.append(f"Only severities {', '.join(map(str, wanted.severities))}: every mean is over these.")
    return notes


def _trained_on(recipe: Recipe | None) -> tuple[str, ...]:
    from convpeft.data.augmentation import corruptions_of

    return () if recipe is None else corruptions_of(recipe.data.augment)


def _compare(path: Path, other: Path, mine: _Measured, wanted: _Wanted) -> dict[str, Any]:
    """Measure another run on the same corrupted images, and pair the two."""
    theirs = recipe_of(other)
    if wanted.data is None:
        if theirs is None:
            raise OptionError(f"{other}: is no run, so it names no images to pair. Give --data.")
        _check_same_images(path, other, theirs, wanted)
    measured = _measure(
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


def _check_same_images(path: Path, other: Path, theirs: Recipe, wanted: _Wanted) -> None:
    """Refuse a pair of runs whose test images differ: one may have been trained on those of the other."""
    ours = recipe_of(path)
    told = [images_of(each, data=None, split=wanted.split) for each in (ours, theirs)]
    first, second = ((dataset.spec, dataset.split(split).ids) for dataset, split in told)
    if first != second:
        raise DataError(
            f"{other}: has other images for testing than {path}, so the two cannot be measured in pairs. "
            "Train both with equal data, folds and seed."
        )


def _write(target: Path, path: Path, measured: _Measured, facts: dict[str, Any]) -> None:
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
                Figure(f"{_SHEET} ({kind})", "One image under every corruption and severity.", figure_bytes(sheet)),
                Code("Command", shlex.join(command_line())),
            ),
        ),
    )


def _summary(measured: _Measured) -> str:
    from convpeft.reporting import format_interval
    from convpeft.reporting.robustness import measures_of

    means = ", ".join(
        f"{label} {format_interval(m.accuracy, m.interval)}" for label, m in measures_of(measured.robustness)
    )
    return f"{means}; {measured.origin.told}, {measured.robustness.n:,} images a severity."


def _show(measured: _Measured, facts: dict[str, Any]) -> None:
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
