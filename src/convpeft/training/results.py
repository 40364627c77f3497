"""What a run leaves behind: figures as JSON and CSV, plots, and the report."""

from __future__ import annotations

import csv
import io
import json
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convpeft._version import __version__
from convpeft.counting import Count
from convpeft.data import Dataset, Split
from convpeft.errors import RunError
from convpeft.evaluation import ClassificationMetrics, Predictions, errors_most_confident
from convpeft.injection import state_of
from convpeft.reporting import (
    Code,
    Notes,
    ReportContent,
    Section,
    format_count,
    format_interval,
    format_share,
    plot_confusion,
    plot_curves,
    plot_reliability,
    save_figure,
    write_confusion_csv,
    write_report,
    write_whole,
)
from convpeft.reporting.sections import classification_sections, curves_section, headline, mistakes_section
from convpeft.training.history import Fit
from convpeft.training.recipe import Recipe

_GALLERY = 12  # mistakes shown


@dataclass(frozen=True)
class Result:
    """Outcome of a run. Times in seconds, memory and sizes in bytes."""

    out: Path
    recipe: Recipe
    dataset: Dataset
    model: nn.Module
    fit: Fit
    count: Count
    predictions: Predictions
    test: ClassificationMetrics
    seconds: float
    peak_memory: int
    adapter_bytes: int
    leaks: dict[str, int]  # images of one split that also occur in another, by "first/second"
    notes: tuple[str, ...]

    @property
    def duplicates(self) -> int:
        """Images that occur in more than one split."""
        return sum(self.leaks.values())


def write_metrics(result: Result, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Write metrics.json, metrics.csv and predictions.csv; return what metrics.json holds."""
    out, state = result.out, state_of(result.model)
    skipped = [path for record in state.names.values() for path in record.skipped] if state else []
    facts = {
        "command": ["convpeft", *sys.argv[1:]] if command is None else list(command),
        "recipe": result.recipe.model_dump(exclude_none=True),
        "parameters": {
            "base": result.count.base,
            "trainable": result.count.trainable,
            "share": result.count.share,
            "stored": result.count.stored,
        },
        "layers_skipped": skipped,
        "best_epoch": asdict(result.fit.best),
        "stopped_early": result.fit.stopped_early,
        "test": result.test.to_dict(),
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "kernels": None if result.fit.kernels is None else result.fit.kernels.to_dict(),
        "adapter_bytes": result.adapter_bytes,
        "duplicates_across_splits": result.duplicates,
        "duplicates_by_splits": result.leaks,
        "images": {name: len(split) for name, split in result.dataset.splits().items()},
        "classes": list(result.dataset.classes),
        "notes": list(result.notes),
        "versions": versions(),
    }
    write_whole(out / "metrics.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    rows = [asdict(row) for row in result.fit.history]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / "metrics.csv", text.getvalue().encode())
    write_predictions(out / "predictions.csv", result.dataset.test.ids, result.dataset.classes, result.predictions)
    return facts


def write_predictions(path: Path, ids: Sequence[str], classes: Sequence[str], predictions: Predictions) -> None:
    """One line an image: id, true class, predicted class, its probability."""
    confidence = predictions.probabilities.max(axis=1)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "label", "predicted", "probability"])
    rows = zip(predictions.index, predictions.labels, predictions.predicted, confidence, strict=True)
    for index, label, predicted, sure in rows:
        writer.writerow([ids[index], classes[label], classes[predicted], f"{sure:.6f}"])
    write_whole(path, text.getvalue().encode())


def peak_memory() -> int:
    """Peak bytes of this process; on a CUDA device, of that device's allocator."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def versions() -> dict[str, str]:
    """Versions that the numbers depend on."""
    return {
        "convpeft": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def write_plots(out: Path, metrics: ClassificationMetrics, history: Sequence[dict[str, Any]]) -> None:
    """Write the figures as PNG files and the confusion matrix as CSV."""
    if history:
        save_figure(plot_curves(history), out / "plots" / "curves.png")
    save_figure(plot_confusion(metrics.confusion, metrics.classes), out / "plots" / "confusion.png")
    save_figure(plot_reliability(metrics.calibration), out / "plots" / "calibration.png")
    write_confusion_csv(out / "confusion.csv", metrics.confusion, metrics.classes)


def gallery(split: Split, predictions: Predictions, classes: Sequence[str]) -> tuple[Section, ...]:
    """The most confident mistakes as images; nothing where there are none."""
    mistakes = errors_most_confident(predictions, _GALLERY)
    images = [split.images[mistake.index] for mistake in mistakes]
    return (mistakes_section(mistakes, images, classes),) if mistakes else ()


def write_run(result: Result, command: Sequence[str] | None = None) -> None:
    """Write everything a run leaves behind but the adapter itself.

    Raises:
        RunError: If it cannot be written; the adapter stands.
    """
    try:
        _write_run(result, command)
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(
            f"{result.out}: cannot write figures and report ({why}). "
            f"Free space and write them with `convpeft train --resume {shlex.quote(str(result.out))}`."
        ) from None


def _write_run(result: Result, command: Sequence[str] | None) -> None:
    facts = write_metrics(result, command)
    history = [asdict(row) for row in result.fit.history]
    write_plots(result.out, result.test, history)
    recipe, test = result.recipe, result.test
    accuracy = format_interval(test.accuracy, test.accuracy_interval)
    share = format_share(result.count.trainable, result.count.base)
    sections: tuple[Section, ...] = (
        headline(
            test,
            trainable=result.count.trainable,
            total=result.count.base,
            adapter_bytes=result.adapter_bytes,
            seconds=result.seconds,
            peak_bytes=result.peak_memory,
        ),
        curves_section(history),
        *classification_sections(test),
        *gallery(result.dataset.test, result.predictions, result.dataset.classes),
        Notes("Data and model", _remarks(result), warning=result.duplicates > 0),
        Code("Command", shlex.join(facts["command"])),
        Code("Recipe", recipe.to_toml(), caption="Everything this run was made from.", folded=True),
        Code("Versions", "\n".join(f"{name} {version}" for name, version in facts["versions"].items()), folded=True),
    )
    write_report(
        result.out / "report.html",
        ReportContent(
            title=f"{recipe.method.name} on {recipe.data.source}",
            subtitle=f"{recipe.model.source} · seed {recipe.train.seed} · {result.out}",
            summary=(
                f"{accuracy} of {format_count(test.n)} test images are classified right, after training "
                f"{format_count(result.count.trainable)} parameters ({share} of the network's "
                f"{format_count(result.count.base)}) for {len(history)} epochs."
            ),
            sections=sections,
            footer=f"convpeft {__version__}",
        ),
    )


def _remarks(result: Result) -> tuple[str, ...]:
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in result.dataset.splits().items())
    remarks = [f"{len(result.dataset.classes)} classes; images: {sizes}."]
    if result.leaks:
        where = ", ".join(f"{number} in {pair.replace('/', ' and ')}" for pair, number in result.leaks.items())
        spoiled = " The test figures are too good." if any("test" in pair for pair in result.leaks) else ""
        remarks.append(f"Images that occur in two splits, pixel for pixel: {where}.{spoiled}")
    else:
        remarks.append("No image occurs in two splits (by digest of the decoded pixels).")
    return (*remarks, *result.notes)
