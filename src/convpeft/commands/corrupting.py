"""Make or find the corrupted images that a command names, and classify them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.commands.evaluating import images_of
from convpeft.console import counting, warnings_as_lines
from convpeft.data.corruptions import ALL
from convpeft.errors import DataError, OptionError
from convpeft.training.recipe import Recipe

if TYPE_CHECKING:
    from convpeft.data import Dataset
    from convpeft.evaluation.corrupted import CorruptedSource
    from convpeft.evaluation.inference import Classifier
    from convpeft.evaluation.robustness import Robustness
    from convpeft.reporting.robustness import Origin

_FILES = "cifar-c:"
_BENCHMARKS = {"cifar": "CIFAR-10-C", "imagenet": "ImageNet-C"}


@dataclass(frozen=True)
class Measured:
    """What one model's measurement is of, and came to."""

    robustness: Robustness
    origin: Origin
    data: str
    of_images: int
    source: CorruptedSource
    first: int  # the image to show


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    names: tuple[str, ...]
    given: bool  # whether somebody named them
    severities: tuple[int, ...]
    table: str
    limit: int | None
    data: str | None
    split: str | None
    quiet: bool


def measure(
    path: Path, recipe: Recipe | None, wanted: Wanted, *, weights: Path | None, force: bool, told: list[str]
) -> Measured:
    """Load a model and measure it; warnings while loading go to the list `told`.

    Raises:
        OptionError: If options do not go together.
        DataError: If images cannot be read, or are of classes that the model does not know.
    """
    from convpeft.evaluation.inference import load_classifier

    with warnings_as_lines() as lines:
        classifier = load_classifier(path, weights=weights, force=force)
    told += lines
    if wanted.data is not None and wanted.data.startswith(_FILES):
        return _from_files(classifier, recipe, wanted)
    dataset, split = images_of(recipe, data=wanted.data, split=wanted.split)
    return _regenerated(classifier, recipe, wanted, dataset, split)


def _regenerated(
    classifier: Classifier, recipe: Recipe | None, wanted: Wanted, dataset: Dataset, split: str
) -> Measured:
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
    return Measured(robustness, origin, f"{dataset.spec} ({split})", len(images), source, int(numbers[0]))


def _from_files(classifier: Classifier, recipe: Recipe | None, wanted: Wanted) -> Measured:
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
    return Measured(robustness, origin, spec, files.count, source, int(numbers[0]))


def _run(
    measure_all: Any,
    classifier: Classifier,
    source: CorruptedSource,
    labels: Any,
    numbers: Any,
    wanted: Wanted,
    names: tuple[str, ...],
    clean: Any,
) -> Robustness:
    with counting(len(names) * len(wanted.severities) * len(numbers), quiet=wanted.quiet) as progress:
        return measure_all(
            classifier,
            source,
            labels,
            numbers=numbers,
            names=names,
            severities=wanted.severities,
            clean=clean,
            progress=progress,
        )


def _clean_of(classifier: Classifier, recipe: Recipe, wanted: Wanted) -> tuple[Any, str]:
    """The accuracy on the run's own test images, as they are."""
    from convpeft.evaluation.corrupted import choose_numbers, labels_for, measure_clean

    dataset, split = images_of(recipe, data=None, split=None)
    images = dataset.split(split)
    labels = labels_for(classifier, dataset, images)
    numbers = choose_numbers(labels, wanted.limit)
    note = f"Clean: {len(numbers):,} of {len(images):,} images of {dataset.spec} ({split})."
    return measure_clean(classifier, images, labels, numbers), note


def _limit_notes(wanted: Wanted, taken: int, count: int) -> list[str]:
    notes = [] if taken == count else [f"Only {taken:,} of {count:,} images were measured, stratified by class."]
    if len(wanted.severities) < 5:
        notes.append(f"Only severities {', '.join(map(str, wanted.severities))}: every mean is over these.")
    return notes


def _trained_on(recipe: Recipe | None) -> tuple[str, ...]:
    from convpeft.data.augmentation import corruptions_of

    return () if recipe is None else corruptions_of(recipe.data.augment)
