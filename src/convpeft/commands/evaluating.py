"""`convpeft evaluate`: measure a run or an adapter, print the figures and write them beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convpeft.console import print_json, say, show_table
from convpeft.errors import DataError, OptionError, RunError
from convpeft.training.recipe import Recipe, make_recipe, read_recipe


def evaluate_path(
    path: Path,
    *,
    data: str | None,
    split: str,
    weights: Path | None,
    who: str,
    against: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a run or an adapter and write its figures beside it."""
    from convpeft.data import load_data
    from convpeft.evaluation import classification_metrics
    from convpeft.evaluation.inference import evaluate_split, load_classifier
    from convpeft.reporting import Code, ReportContent, format_interval, write_report
    from convpeft.reporting.sections import classification_sections
    from convpeft.training.results import gallery, write_plots, write_predictions

    recipe = _recipe_of(path)
    if data is None and recipe is None:
        raise OptionError(f"{path}: is no run, so it tells no images. Give --data.")
    classifier = load_classifier(path, weights=weights)
    if data is not None:
        dataset, spec = load_data(data), data
    else:
        from convpeft.training.preparing import load_recipe_data

        assert recipe is not None
        dataset, spec = load_recipe_data(recipe), recipe.data.source
    predictions, classes = evaluate_split(classifier, dataset, split, who=who)
    metrics = classification_metrics(predictions.probabilities, predictions.labels, classes)
    facts: dict[str, Any] = metrics.to_dict() | {"run": str(path), "data": spec, "split": split, "model": who}
    if against is not None:
        facts["against"] = _compare(path, against, dataset.splits()[split].ids, predictions.correct)
    target = out if out is not None else (path / "evaluation" / _slug(f"{who}-{spec}-{split}") if recipe else None)
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        (target / "metrics.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_plots(target, metrics, [])
        write_predictions(target / "predictions.csv", dataset.splits()[split].ids, classes, predictions)
        accuracy = format_interval(metrics.accuracy, metrics.accuracy_interval)
        write_report(
            target / "report.html",
            ReportContent(
                title=f"{who} on {spec}",
                subtitle=f"{path} · {split} split",
                summary=f"{accuracy} of {metrics.n:,} images are classified right.",
                sections=(
                    *classification_sections(metrics),
                    *gallery(dataset, split, predictions, classes),
                    Code("Command", f"convpeft evaluate {path} --data {spec} --split {split}"),
                ),
            ),
        )
    if as_json:
        print_json(facts)
        return
    _show_evaluation(metrics, f"{who} on {spec} ({split})")
    if against is not None:
        say(facts["against"]["sentence"])
    if target is not None:
        say(f"report: {target / 'report.html'}")


def _recipe_of(path: Path) -> Recipe | None:
    file = path / "recipe.toml"
    return make_recipe(read_recipe(file), where=str(file)) if file.is_file() else None


def _compare(path: Path, other: Path, ids: Sequence[str], correct: Any) -> dict[str, Any]:
    """Paired difference to another run's predictions on the same images."""
    import numpy as np

    from convpeft.evaluation import describe_difference, mcnemar, paired_difference

    file = other / "predictions.csv"
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            theirs = {row["image"]: row["label"] == row["predicted"] for row in csv.DictReader(handle)}
    except (OSError, KeyError) as error:
        raise RunError(f"{file}: cannot be read ({error}). --against takes a run's directory.") from None
    if set(ids) != set(theirs):
        raise DataError(f"{other}: was tested on other images, so the two cannot be paired. Use equal --data and seed.")
    right = np.array([theirs[each] for each in ids])
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


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:80]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
