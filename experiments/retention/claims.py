"""What document 003 says, sentence by sentence, and what the runs say to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plan import FULL, LORA
from sequences import SCENARIOS
from store import select
from summary import Row, Summary
from wording import difference, measured, share

from convpeft.evaluation import mean_interval, sequence_scores

HELD, PARTLY, NOT_HELD, OPEN = "held", "held in part", "not held", "not told by these seeds"
KEPT = 0.95  # the document's own figure
CONSISTENT = FORGOTTEN = 0.05  # points of accuracy that are called no change
DRASTIC = 0.5  # a "drastic reduction" is read as less than half of the source's accuracy; set before the runs


@dataclass(frozen=True)
class Claim:
    """One sentence of the document in short, the verdict, and the figures behind it."""

    sentence: str
    verdict: str
    figures: str


def judge(summary: Summary) -> list[Claim]:
    """Every sentence that can be measured here, in the document's order."""
    if not summary.transfers:
        return []
    judges: tuple[Callable[[Summary], Claim], ...] = (
        _intact,
        _performance_kept,
        _kept_at_smallest,
        _drastic,
        _overfitting,
        _improvement,
        _superior,
        _consistent,
        _fewer,
        _continual,
    )
    return [each(summary) for each in judges]


def _cells(summary: Summary, place: int) -> list[tuple[str, float]]:
    """Each transfer at its smallest (0) or largest (-1) fraction."""
    return [(name, summary.fractions_of(name)[place]) for name in summary.transfers]


def _all_cells(summary: Summary) -> list[tuple[str, float]]:
    return [(name, fraction) for name in summary.transfers for fraction in summary.fractions_of(name)]


def _shown(summary: Summary, cells: Sequence[tuple[str, float]], tell: Callable[[str, float], str]) -> str:
    return "; ".join(f"{name} at {share(fraction)}: {tell(name, fraction)}" for name, fraction in cells)


def combine(verdicts: Sequence[bool | None]) -> str:
    """One verdict of several: each yes, no, or not to be told."""
    if all(each is None for each in verdicts):
        return OPEN
    if all(verdicts):
        return HELD
    return PARTLY if any(verdicts) else NOT_HELD


def _above(row: Row, field: str, limit: float) -> bool | None:
    """Whether a figure is surely above a limit, surely below, or neither."""
    interval = row.interval(field)
    low, high = interval if interval is not None else (row.mean(field),) * 2
    return True if low >= limit else False if high < limit else None


def _intact(summary: Summary) -> Claim:
    runs = select(summary.lines, "run")
    every = [*runs, *(wise for run in runs for wise in run.get("wise", []))]
    same = sum(each["off_identical"] for each in every)
    return Claim(
        "LoRA leaves the original weights intact.",
        HELD if same == len(every) else NOT_HELD,
        f"Adapter off, the base's logits are there bit by bit in {same} of {len(every)} networks: structural retention "
        "100 %. Full fine-tuning as convpeft does it keeps the base beside its own weights, so this is no advantage of "
        "a low rank; it costs the disk of a whole network.",
    )


def _performance_kept(summary: Summary) -> Claim:
    cells = _cells(summary, -1)
    rows = [summary.row(name, fraction, LORA) for name, fraction in cells]
    return Claim(
        "This retains the performance level on previous tasks (read: with the adapter on, under the source's head, at "
        f"least {share(KEPT)} of it).",
        combine([_above(row, "retention", KEPT) for row in rows]),
        f"{rows[0].title} keeps: {_shown(summary, cells, lambda *x: measured(summary.row(*x, LORA), 'retention'))} %.",
    )


def _kept_at_smallest(summary: Summary) -> Claim:
    cells = _cells(summary, 0)
    rows = [summary.row(name, fraction, LORA) for name, fraction in cells]
    return Claim(
        "With 5 % of the data LoRA keeps 95 % of the original knowledge.",
        combine([_above(row, "retention", KEPT) for row in rows]),
        f"{rows[0].title} keeps: {_shown(summary, cells, lambda *x: measured(summary.row(*x, LORA), 'retention'))} %. "
        "The document names no data, model or measure for its figure.",
    )


def _drastic(summary: Summary) -> Claim:
    cells = _cells(summary, 0)
    low = [_above(summary.row(*cell, FULL), "retention", DRASTIC) for cell in cells]

    def tell(name: str, fraction: float) -> str:
        full, lora = (summary.row(name, fraction, arm) for arm in (FULL, LORA))
        gap = difference(lora.minus(full, "retention"))
        return f"full {measured(full, 'retention')} %, LoRA less full {gap} points"

    return Claim(
        f"There, full fine-tuning loses drastically (read: keeps less than {share(DRASTIC)}).",
        combine([None if each is None else not each for each in low]),
        f"{_shown(summary, cells, tell).capitalize()}.",
    )


def _target_claim(summary: Summary, place: int, sentence: str) -> Claim:
    cells = _cells(summary, place)
    gaps = [summary.row(*cell, LORA).minus(summary.row(*cell, FULL), "test_accuracy") for cell in cells]
    return Claim(
        sentence,
        combine([None if gap.within_noise else gap.mean > 0 for gap in gaps]),
        "Target accuracy of LoRA, rank 8, less full fine-tuning, points: "
        + _shown(
            summary,
            cells,
            lambda *x: difference(summary.row(*x, LORA).minus(summary.row(*x, FULL), "test_accuracy")),
        )
        + ".",
    )


def _overfitting(summary: Summary) -> Claim:
    return _target_claim(
        summary, 0, "On little data full fine-tuning overfits, and LoRA does not (read: LoRA is the more accurate)."
    )


def _improvement(summary: Summary) -> Claim:
    return _target_claim(
        summary, -1, "LoRA brings a significant improvement on the new task (read: over full fine-tuning, all data)."
    )


def _superior(summary: Summary) -> Claim:
    verdicts: list[bool | None] = []
    told: list[str] = []
    for name, fraction in _all_cells(summary):
        lora = summary.row(name, fraction, LORA)
        for nearest, near in summary.matched(name, fraction):
            if near is not None:
                gap = lora.minus(nearest, "retention")
                verdicts.append(None if gap.within_noise else gap.mean > 0)
    for word, wanted in (("keeps more", True), ("keeps less", False), ("cannot be told apart", None)):
        told.append(f"{word} in {sum(each is wanted for each in verdicts)}")
    return Claim(
        "LoRA is superior: it adapts while it keeps pre-trained knowledge (read: at equal target accuracy it keeps "
        "more than full fine-tuning with and without frozen norms, WiSE-FT, L2-SP and LwF).",
        combine(verdicts) if verdicts else OPEN,
        f"Of {len(verdicts)} comparisons in which another way comes near LoRA's validation accuracy, LoRA "
        + ", ".join(told)
        + ". They are listed below.",
    )


def _consistent(summary: Summary) -> Claim:
    told: list[str] = []
    verdicts: list[bool | None] = []
    for name in summary.transfers:
        few, all_ = (summary.fractions_of(name)[place] for place in (0, -1))
        gap = summary.row(name, all_, LORA).minus(summary.row(name, few, LORA), "test_accuracy")
        low, high = (gap.mean,) * 2 if gap.low is None or gap.high is None else (gap.low, gap.high)
        verdicts.append(True if max(-low, high) <= CONSISTENT else False if low > CONSISTENT else None)
        told.append(f"{name}: {difference(gap)}")
    return Claim(
        f"LoRA's performance stays consistent across amounts of data (read: within {100 * CONSISTENT:.0f} points).",
        combine(verdicts),
        f"Target accuracy with all of the images less with the fewest, points: {'; '.join(told)}.",
    )


def _fewer(summary: Summary) -> Claim:
    told: list[str] = []
    for name, fraction in _cells(summary, -1):
        lora, full = (summary.row(name, fraction, arm).runs[0]["trainable"] for arm in (LORA, FULL))
        told.append(f"{name}: {lora:,} of {full:,} ({share(lora / full)})")
    return Claim(
        "LoRA trains far fewer parameters.",
        HELD,
        f"Rank 8, the new head included: {'; '.join(told)}. On networks this small "
        "the share is not that of large ones.",
    )


def _continual(summary: Summary) -> Claim:
    told: list[str] = []
    verdicts: list[bool | None] = []
    for scenario in SCENARIOS:
        for mode in ("one adapter", "full", "adapter a task"):
            lines = summary.sequences.get((scenario, mode), [])
            if not lines:
                continue
            backward = [sequence_scores(line["matrix"]).backward or 0.0 for line in lines]
            told.append(f"{scenario}, {mode}: {100 * statistics.fmean(backward):+.1f}")
            low, high = mean_interval(backward) if len(lines) > 1 else (backward[0],) * 2
            if mode != "full":
                verdicts.append(True if low >= -FORGOTTEN else False if high < -FORGOTTEN else None)
    if not told:
        return Claim("LoRA learns on without catastrophic forgetting.", OPEN, "The sequences were not run.")
    return Claim(
        "LoRA learns on, task after task, without catastrophic forgetting (read: BWT above "
        f"-{100 * FORGOTTEN:.0f} points).",
        combine(verdicts),
        f"BWT in points, mean over the seeds: {'; '.join(told)}. One adapter a task cannot forget, because nothing "
        "of a task is touched again, but it must be told which task an image belongs to.",
    )


NOT_MEASURED = (
    ("88.5 % against 84.3 % on GLUE (Hu et al.)", "a language benchmark; the paper it names has other figures"),
    ("A ResNet-50 with LoRA rises from F1 0.82 to 0.87", "no data and no source are named; nothing to repeat"),
    ("Sentiment analysis, chat, speech, health care, cars", "other fields than image classification by CNNs"),
    ("LoRA works on the attention of transformers and less elsewhere", "no transformer is compared here"),
    (
        "Training times may grow",
        "other work ran on the same cores; see [what training costs](training_cost.md) for measured steps",
    ),
    ("Pre-training saves training time", "training from scratch is not an arm here"),
    ("Outlook: other low-rank structures, combinations with other techniques", "no claim that can be measured"),
)
