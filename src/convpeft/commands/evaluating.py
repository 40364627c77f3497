"""`convpeft evaluate`: measure a run or an adapter, print the figures and write them beside it."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.console import command_line, print_json, say, show_table, warnings_as_lines
from convpeft.errors import DataError, OptionError, RunError, one_line
from convpeft.training.recipe import Recipe, make_recipe, read_recipe

if TYPE_CHECKING:
    from convpeft.data import Dataset


def evaluate_path(
    path: Path,
    *,
    data: str | None,
    split: str | None,
    weights: Path | None,
    who: str,
    against: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Evaluate a run or an adapter and write its figures beside it."""
    from convpeft.adapter_file import find_adapter
    from convpeft.evaluation import classification_metrics
    from convpeft.evaluation.inference import evaluate_split, load_classifier
    from convpeft.reporting import Code, Notes, ReportContent, format_interval, write_report, write_whole
    from convpeft.reporting.sections import classification_sections
    from convpeft.training.results import gallery, write_plots, write_predictions

    find_adapter(path)
    recipe = recipe_of(path)
    if data is None and recipe is None:
        raise OptionError(f"{path}: is no run, so it tells no images. Give --data.")
    with warnings_as_lines() as told:
        classifier = load_classifier(path, weights=weights, force=force)
    dataset, split = images_of(recipe, data=data, split=split)
    spec = dataset.spec
    images = dataset.split(split)
    predictions, classes = evaluate_split(classifier, dataset, split, who=who)
    metrics = classification_metrics(predictions.probabilities, predictions.labels, classes)
    facts: dict[str, Any] = metrics.to_dict() | {"run": str(path), "data": spec, "split": split, "model": who}
    if force:
        facts["forced"] = told
    if who != "adapter":
        named = len(dataset.classes)
        facts["note"] = (
            f"the base tells no class names: its first {named} of {len(classes)} outputs stand for the data's classes"
        )
    if against is not None:
        truth = {images.ids[i]: classes[k] for i, k in zip(predictions.index, predictions.labels, strict=True)}
        facts["against"] = _compare(path, against, truth, predictions.correct)
    target = out if out is not None else (path / "evaluation" / slug(f"{who}-{split}-{spec}") if recipe else None)
    if target is not None:
        write_whole(target / "metrics.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
        write_plots(target, metrics, [])
        write_predictions(target / "predictions.csv", images.ids, classes, predictions)
        accuracy = format_interval(metrics.accuracy, metrics.accuracy_interval)
        write_report(
            target / "report.html",
            ReportContent(
                title=f"{who} on {spec}",
                subtitle=f"{path} · {split} split",
                summary=f"{accuracy} of {metrics.n:,} images are classified right.",
                sections=(
                    *classification_sections(metrics),
                    *gallery(images, predictions, classes),
                    *([Notes("Forced", tuple(told), warning=True)] if told else []),
                    Code("Command", shlex.join(command_line())),
                ),
            ),
        )
    if as_json:
        print_json(facts)
        return
    _show_evaluation(metrics, f"{who} on {spec} ({split})")
    if "note" in facts:
        say(f"note: {facts['note']}, in the order of the data. Only right if the base was trained on them.")
    if against is not None:
        say(facts["against"]["sentence"])
    if target is not None:
        say(f"report: {target / 'report.html'}")


def images_of(recipe: Recipe | None, *, data: str | None, split: str | None) -> tuple[Dataset, str]:
    """The images to measure on and the name of their split.

    Args:
        recipe: Of the run, None for an adapter alone: then `data` is given.
        data: Other images than the run's own.
        split: The split that is asked for; None for test, or all where other images have no test split.
    """
    from convpeft.data import load_data

    others = data is not None and not _is_own(recipe, data)  # images that this run was not trained on, by their name
    if others and split in (None, "all"):  # they are taken as they are, and whole where they have no test split
        dataset = load_data(data or "", whole=True)
        return dataset, split or ("test" if len(dataset.test) else "all")
    if recipe is None:
        return load_data(data or ""), split or "test"
    from convpeft.training.preparing import load_recipe_data

    # the run's own seed, or a folder that it was trained on would be split in another way
    own = recipe.data.model_copy(update={"source": data, "fold": None}) if others else recipe.data
    return load_recipe_data(recipe.model_copy(update={"data": own})), split or "test"


def _is_own(recipe: Recipe | None, data: str) -> bool:
    return recipe is not None and data == recipe.data.source


def recipe_of(path: Path) -> Recipe | None:
    """The recipe of a run; None for an adapter alone."""
    file = path / "recipe.toml"
    return make_recipe(read_recipe(file), where=str(file)) if file.is_file() else None


def _compare(path: Path, other: Path, truth: Mapping[str, str], correct: Any) -> dict[str, Any]:
    """Paired difference to another run's predictions on the same images."""
    import numpy as np

    from convpeft.evaluation import describe_difference, mcnemar, paired_difference

    file = other / "predictions.csv"
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            rows = {row["image"]: (row["label"], row["predicted"]) for row in csv.DictReader(handle)}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise RunError(f"{file}: cannot be read ({one_line(error)}). --against takes a run's directory.") from None
    if {image: label for image, (label, _) in rows.items()} != truth:
        raise DataError(f"{other}: was tested on other images, so the two cannot be paired. Use equal --data and seed.")
    right = np.array([rows[image][0] == rows[image][1] for image in truth])
    difference = paired_difference(correct, right, seed=0)
    sentence = describe_difference(difference, a=str(path), b=str(other))
    return {
        "run": str(other),
        "difference": difference.delta,
        "low": difference.low,
        "high": difference.high,
        "mcnemar_p": mcnemar(correct, right),
        "sentence": sentence,
    }


def _show_evaluation(metrics: Any, title: str) -> None:
    from convpeft.reporting import format_interval

    rows = [
        ("images", f"{metrics.n:,}"),
        ("accuracy", format_interval(metrics.accuracy, metrics.accuracy_interval)),
        ("balanced accuracy", f"{metrics.balanced_accuracy:.4f}"),
        ("macro F1", f"{metrics.macro_f1:.4f}"),
        ("AUC", "-" if metrics.macro_auc is None else f"{metrics.macro_auc:.4f}"),
        ("specificity", "-" if metrics.macro_specificity is None else f"{metrics.macro_specificity:.4f}"),
        ("calibration error", f"{metrics.expected_calibration_error:.4f}"),
    ]
    show_table(title, ("", "result"), rows)
    classes = [
        (scores.name, f"{scores.support:,}", *(_figure(value) for value in figures))
        for scores in metrics.per_class
        for figures in [(scores.precision, scores.sensitivity, scores.specificity, scores.f1)]
        if scores.support
    ]
    show_table("by class", ("class", "images", "precision", "sensitivity", "specificity", "F1"), classes)
    pairs = [
        (f"{pair.first} / {pair.second}", str(pair.first_as_second), str(pair.second_as_first), f"{pair.share:.1%}")
        for pair in metrics.confused_pairs[:8]
    ]
    if pairs:
        show_table("most confused", ("pair", "first as second", "second as first", "of all errors"), pairs)


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:80]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
