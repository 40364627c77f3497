"""The demo: one network from digits to digits and letters, four ways, offline, with what is gained and what is kept."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.console import ProgressBar, say, show_table
from convpeft.errors import RunError
from convpeft.training.recipe import Recipe, make_recipe

if TYPE_CHECKING:
    from convpeft.data import Dataset
    from convpeft.reporting import Section
    from convpeft.training.results import Result

DIGITS, CHARACTERS = "glyphs:digits", "glyphs:all"
LIMIT = 9_300  # training images of a run, 150 a character, so that the demo takes minutes
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("head only", "head-only", {"name": "probe"}),
    ("LoRA in the projection + head", "lora-projection", {"name": "lora", "rank": 8, "include": ["projection"]}),
    ("LoRA on every layer + head", "lora-everywhere", {"name": "lora", "rank": 8}),
    ("full fine-tuning", "full", {"name": "full"}),
)


@dataclass(frozen=True)
class Retention:
    """What is left of the digits."""

    base_accuracy: float
    identical: bool
    adapted_accuracy: float


def run_demo(out: Path, *, epochs: int) -> None:
    """Train on digits, adapt to digits and letters in four ways, compare, and write the report.

    Raises:
        RunError: If the directory is in use.
    """
    from convpeft.commands.using import merge_run

    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: exists already. Remove it or give another --out.")
    say("1/5 training small-cnn on rendered digits")
    base_recipe = _recipe(out / "digits", DIGITS, {"name": "full"}, epochs=2 * epochs)
    _run(base_recipe)
    weights = out / "digits.safetensors"
    merge_run(out / "digits", weights, weights=None)
    digits = _digits()
    results: list[tuple[str, Result, Retention]] = []
    for number, (title, name, method) in enumerate(WAYS, 2):
        say(f"{number}/5 digits and letters: {title}")
        result = _run(_recipe(out / name, CHARACTERS, method, epochs=epochs, weights=weights))
        results.append((title, result, _measure_retention(result, digits, weights)))
    _report(out, results)


def _recipe(out: Path, data: str, method: dict[str, Any], *, epochs: int, weights: Path | None = None) -> Recipe:
    model: dict[str, Any] = {"source": "small-cnn"} | ({"weights": str(weights)} if weights else {"pretrained": False})
    return make_recipe(
        {
            "model": model,
            "data": {"source": data, "limit": LIMIT},
            "method": method,
            "train": {"epochs": epochs, "batch_size": 64},
            "out": str(out),
        }
    )


def _run(recipe: Recipe) -> Result:
    from convpeft.training.results import write_run
    from convpeft.training.runs import open_run, run_prepared

    with open_run(recipe) as prepared:
        with ProgressBar(recipe.train.epochs, len(prepared.dataset.train), lines=False) as bar:
            result = run_prepared(prepared, Path(recipe.out), resume=False, watcher=bar)
        write_run(result)
    return result


def _digits() -> Dataset:
    from convpeft.data import load_data

    return load_data(DIGITS)


def _measure_retention(result: Result, digits: Dataset, weights: Path) -> Retention:
    """The digits' test images under the base, the base with the adapter off, and the adapter with the old head."""
    from convpeft.attachment import disabled, old_head
    from convpeft.data import ImageBatches
    from convpeft.evaluation import is_retained, predict_logits
    from convpeft.models import load_model, preprocessing_of

    base = load_model("small-cnn", weights=weights)
    preprocessing = preprocessing_of(base)
    assert preprocessing is not None
    served = ImageBatches(digits.test, preprocessing, batch_size=256)
    before = predict_logits(base, served)
    with disabled(result.model):
        off = predict_logits(result.model, served)
    with old_head(result.model):
        on = predict_logits(result.model, served)
    return Retention(float(before.correct.mean()), is_retained(before.logits, off.logits), float(on.correct.mean()))


def _report(out: Path, results: list[tuple[str, Result, Retention]]) -> None:
    from convpeft.reporting import (
        Code,
        Figure,
        ReportContent,
        Table,
        Text,
        TradeoffPoint,
        figure_bytes,
        format_bytes,
        format_interval,
        format_percent,
        plot_confusion,
        plot_tradeoff,
        write_report,
        write_whole,
    )

    headers = (
        "way",
        "trained",
        "accuracy on digits and letters",
        "time",
        "adapter",
        "digits kept, off",
        "digits kept, on",
    )
    rows = [
        (
            title,
            f"{result.count.trainable:,}",
            format_interval(result.test.accuracy, result.test.accuracy_interval),
            f"{result.seconds:.0f} s",
            format_bytes(result.adapter_bytes),
            "bit-identical" if kept.identical else "NOT IDENTICAL",
            f"{format_percent(kept.adapted_accuracy)} of {format_percent(kept.base_accuracy)}",
        )
        for title, result, kept in results
    ]
    show_table("digits to digits and letters", headers, rows)
    title, chosen, _ = results[2]
    pairs = chosen.test.confused_pairs[:10]
    pair_rows = [(f"{pair.first} / {pair.second}", str(pair.count), f"{pair.share:.1%}") for pair in pairs]
    show_table(f"most confused: {title}", ("pair", "mistakes", "of all errors"), pair_rows)
    points = [
        TradeoffPoint(name, result.count.trainable, result.test.accuracy, *result.test.accuracy_interval)
        for name, result, _ in results
    ]
    sections: tuple[Section, ...] = (
        Table("Four ways to adapt one network", headers, tuple(rows), caption=_CAPTION),
        Figure(
            "Accuracy against trained parameters", "With Wilson 95 % intervals.", figure_bytes(plot_tradeoff(points))
        ),
        Table(
            f"Most confused pairs: {title}",
            ("pair", "mistakes", "of all errors"),
            tuple(pair_rows),
            caption="Many of these are the same glyph: no classifier can tell 0 from O, or 1, I and l, by shape alone.",
        ),
        Figure(
            f"Confusion: {title}",
            "Rows are true characters.",
            figure_bytes(plot_confusion(chosen.test.confusion, chosen.test.classes)),
        ),
        Text("What to look at next", tuple(f"{result.out / 'report.html'}: {name}" for name, result, _ in results)),
        Code("Command", f"convpeft demo --out {out}"),
    )
    write_report(
        out / "report.html",
        ReportContent(
            title="From digits to digits and letters",
            subtitle="convpeft demo, rendered characters, no download",
            summary=_summary(results),
            sections=sections,
        ),
    )
    text = io.StringIO(newline="")
    csv.writer(text).writerows([headers, *rows])
    write_whole(out / "comparison.csv", text.getvalue().encode())
    say(f"report: {(out / 'report.html').resolve()}")


_CAPTION = (
    "Equal epochs, data and seed; each method at its default learning rate. 'Digits kept, off' compares the network "
    "with the adapter switched off to the base bit by bit; 'on' puts the base's digit classifier on the adapted "
    "features."
)


def _summary(results: list[tuple[str, Result, Retention]]) -> str:
    (_, probe, _), _, (title, lora, _), (_, full, _) = results
    return (
        f"{title} trains {lora.count.share:.1%} of the network and reaches {lora.test.accuracy:.1%} on digits "
        f"and letters, against {probe.test.accuracy:.1%} for a new head alone "
        f"and {full.test.accuracy:.1%} for full fine-tuning."
    )
