"""Turn a measurement on corrupted images into sections of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convpeft.data.corruptions.names import COMMON, EXTRA, RAIN
from convpeft.evaluation.robustness import MeanAccuracy, Robustness
from convpeft.reporting.canvas import figure_bytes
from convpeft.reporting.content import Figure, KeyFigure, KeyFigures, Notes, Section, Table
from convpeft.reporting.corruptions import plot_robustness, words
from convpeft.reporting.wording import format_count, format_interval, format_percent


@dataclass(frozen=True)
class Origin:
    """Where corrupted images come from, and what the model had seen of corruptions before.

    Attributes:
        regenerated: Whether they were made on the spot; else they were read from files.
        told: What they are, in a few words: "CIFAR-10-C, read from files", "regenerated".
        notes: What a reader must know of them.
        trained_on: Corruptions that the model was trained on.
    """

    regenerated: bool
    told: str
    notes: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()


def robustness_sections(robustness: Robustness, origin: Origin) -> tuple[Section, ...]:
    """Show the means, the table of accuracies as a figure and as text, and where the images come from."""
    kind = "regenerated" if origin.regenerated else "from files"
    return (
        _means(robustness, origin),
        Figure(
            title=f"Accuracy under corruption ({kind})",
            caption=(
                f"Percent of {format_count(robustness.n)} images that are classified right, for each corruption and "
                f"severity; {origin.told}."
            ),
            image=figure_bytes(plot_robustness(robustness)),
            alternative=f"Accuracy by {len(robustness.names)} corruptions and {len(robustness.severities)} severities",
        ),
        _table(robustness, origin, kind),
        Notes("Corrupted images", remarks(robustness, origin)),
    )


def remarks(robustness: Robustness, origin: Origin) -> tuple[str, ...]:
    """What training and test corruptions are, each named by itself, and what else is to be known."""
    trained = ", ".join(map(words, origin.trained_on)) or "none"
    unseen = [name for name in robustness.names if name not in origin.trained_on]
    listed = ", ".join(map(words, robustness.names))
    both = ", ".join(words(name) for name in robustness.names if name in origin.trained_on) or "none"
    told = [
        f"Training corruptions: {trained}.",
        f"Test corruptions: {listed}.",
    ]
    if origin.trained_on:
        told.append(f"In both: {both}. What the model was trained on says little about what it has not seen.")
        if unseen:
            mean = robustness.mean(unseen).accuracy
            told.append(f"Mean accuracy over the {len(unseen)} that it was not trained on: {format_percent(mean)}.")
    return (*told, *origin.notes)


def measures_of(robustness: Robustness) -> list[tuple[str, MeanAccuracy]]:
    """The means that can be told, by their names for people."""
    found: list[tuple[str, MeanAccuracy]] = []
    clean = robustness.clean_accuracy
    if clean is not None:
        found.append(("clean", clean))
    for label, names in (("mCA-15", COMMON), ("mCA-19", (*COMMON, *EXTRA)), ("rain", (RAIN,))):
        if robustness.has(names):
            found.append((label, robustness.mean(names)))
    if not robustness.has(COMMON) and len(robustness.names) > 1:
        found.append((f"mean of {len(robustness.names)}", robustness.mean()))
    return found


def _means(robustness: Robustness, origin: Origin) -> KeyFigures:
    labels = {
        "clean": "images as they are",
        "mCA-15": f"15 common corruptions, {origin.told}",
        "mCA-19": "with the 4 extra ones",
        "rain": "not part of CIFAR-10-C or ImageNet-C; ours",
    }
    items: list[KeyFigure] = []
    for label, mean in measures_of(robustness):
        low, high = mean.interval
        note = labels.get(label, "the corruptions below")
        items.append(
            KeyFigure(
                label, format_percent(mean.accuracy), f"{note}; 95 % interval {100 * low:.1f} to {100 * high:.1f}"
            )
        )
    return KeyFigures(tuple(items))


def _table(robustness: Robustness, origin: Origin, kind: str) -> Table:
    def row(name: str, shares: Sequence[float]) -> tuple[str, ...]:
        mean = sum(shares) / len(shares)
        trained = "yes" if name in origin.trained_on else "no"
        return (words(name), *map(format_percent, shares), format_percent(mean), format_percent(1 - mean), trained)

    severities = tuple(f"severity {each}" for each in robustness.severities)
    rows = [row(name, shares) for name, shares in zip(robustness.names, robustness.accuracies.tolist(), strict=True)]
    intervals = "; ".join(f"{name} {format_interval(m.accuracy, m.interval)}" for name, m in measures_of(robustness))
    return Table(
        title=f"Corruption by corruption ({kind})",
        headers=("Corruption", *severities, "Accuracy", "Error", "Trained on"),
        rows=tuple(rows),
        caption=f"{intervals}. The mean error is not divided by that of a reference network (AugMix's mCE).",
    )
