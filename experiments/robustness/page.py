"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from account import done_lines, limit_blocks, reproduce_block
from claims import BEYOND, claim_blocks
from common.blocks import steps_told
from common.text import be, listed, points, table, words
from common.wording import detectable_cell, difference, difference_cell, over_images_cell
from figure import draw_all
from plan import BUDGETS
from summary import CLEAN, HEAD, MCA_19, NORMS, SCRATCH, WHOLE, Summary

from convpeft.reporting import format_count, format_percent
from convpeft.reporting.corruptions import words as named

NAME = "robustness"


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its plots below `docs`; equal results give equal bytes."""
    content = json.loads(results.read_text(encoding="utf-8"))
    summaries = [Summary(name, task) for name, task in content["tasks"].items()]
    if not summaries:
        raise SystemExit(f"{results}: holds no task yet. Run one first.")
    docs.mkdir(parents=True, exist_ok=True)
    lacking = [task.title for task in BUDGETS[content["budget"]] if task.name not in content["tasks"]]
    blocks = [
        *_head(summaries, lacking),
        *(block for summary in summaries for block in _task(summary, docs, tasks=list(content["tasks"]))),
        *limit_blocks(summaries, content["budget"]),
        reproduce_block(content["budget"], summaries),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(summaries: Sequence[Summary], lacking: Sequence[str]) -> Iterator[str]:
    yield "# LoRA-C and robustness"
    yield (
        "Document 004 says that LoRA-C makes a convolutional network robust against fog, rain, snow and other "
        "corruptions, best with alpha/r = 2. Here it stands beside tuned baselines, with and without AugMix: "
        f"{listed(summary.content['title'] for summary in summaries)}. In short:"
    )
    lines = [line for summary in summaries for line in _short(summary)]
    lines += [f"{title}: belongs to this budget and is not measured yet; the command below does." for title in lacking]
    yield "\n".join(f"- {line}" for line in lines)


def _short(summary: Summary) -> Iterator[str]:
    """The three questions of the document, answered."""
    measures = [measure for measure in (CLEAN, MCA_19) if measure in summary.measures]
    two, half = summary.matched("ratio", 2.0, 0.5)
    if two:
        found = [_compared(summary, two, half, measure) for measure in measures]
        line = f"Does alpha/r = 2 hold? Against 0.5, over {words(len(two))} pairs: {listed(found)}."
        two, beyond = summary.matched("ratio", 2.0, BEYOND)
        if two:
            found = [_compared(summary, two, beyond, measure) for measure in measures]
            line += f" Against {BEYOND:g}, in one pair: {listed(found)}."
        yield line
    yield (
        f"Does LoRA-C gain robustness over tuned baselines? By {measures[-1]} `{summary.named}`, named beforehand, is "
        f"{_beside_others(summary, summary.named, measures[-1])}. The one of {words(len(summary.lora_c()))} arms that "
        f"validation puts first, `{summary.chosen}`, is {_beside_others(summary, summary.chosen, measures[-1])}."
    )
    yield _settings_line(summary, measures)
    best = {measure: max(summary.arms, key=lambda arm: summary.level(arm, measure).mean) for measure in measures}
    levels = {measure: format_percent(summary.level(arm, measure).mean) for measure, arm in best.items()}
    told = [f"`{arm}` by {_measure(measure)} ({levels[measure]})" for measure, arm in best.items()]
    run, edges = summary.first(WHOLE), len(summary.at_edge())
    yield (
        f"All this holds for a short training, {steps_told([summary])} steps on {run['images']['train']:,} images, in "
        f"which the highest of {len(summary.arms)} arms is {listed(told)}. Arms that change the whole network may need "
        f"more of it than a new head does; and {edges} of the learning rates chosen {be(edges)} the lowest or the "
        "highest that was tried. No verdict here is one on LoRA-C trained to its end."
    )


def _measure(measure: str) -> str:
    return "clean accuracy" if measure == CLEAN else measure


def _beside_others(summary: Summary, ours: str, measure: str) -> str:
    """Which baselines an arm is ahead of, level with, and behind."""
    others = [arm for arm in (SCRATCH, HEAD, NORMS, WHOLE, f"{WHOLE}, augmix") if arm in summary.arms]
    signs = {arm: summary.contrast([ours], [arm], measure).sign for arm in others}
    sides = {1: "more robust than", 0: "within noise of", -1: "less robust than"}
    return listed(
        f"{side} {listed(f'`{arm}`' for arm in others if signs[arm] == sign)}"
        for sign, side in sides.items()
        if sign in signs.values()
    )


def _compared(summary: Summary, arms: Sequence[str], others: Sequence[str], measure: str) -> str:
    found = summary.contrast(arms, others, measure)
    word = {1: "better", 0: "within noise", -1: "worse"}[found.sign]
    return f"{measure} {word} ({difference(found)} points)"


def _settings_line(summary: Summary, measures: Sequence[str]) -> str:
    wide, narrow = summary.matched("setting", "rk", "r")
    found = [_compared(summary, wide, narrow, measure) for measure in measures]
    line = f"Which setting wins? At equal rank `rk`, with up to three times the parameters of `r`: {listed(found)}."
    equal = summary.content["equal"]
    if equal is None or equal["differing"]:
        return line
    return (
        f"{line} At equal size neither: in 3x3 convolutions rank r of `rk` is rank 3 r of `r`, and after training "
        f"alike none of their {equal['numbers']:,} trained numbers differs."
    )


def _task(summary: Summary, docs: Path, *, tasks: Sequence[str]) -> Iterator[str]:
    drawn = draw_all(summary, docs / NAME)
    yield from claim_blocks(summary, tasks=tasks)
    yield f"## What was done: {summary.content['title']}"
    yield "\n".join(f"- {line}" for line in done_lines(summary))
    yield f"## Accuracy: {summary.content['title']}"
    yield (
        "Mean over the seeds in percent, in brackets its 95 % t-interval. *Lost*: clean accuracy less mCA-19, in "
        "points. Rain has few answers, so its figures are the least sure."
    )
    yield table(
        ("arm", "trained", *summary.measures, "lost", "learning rate"), [_arm_row(summary, arm) for arm in summary.arms]
    )
    yield f"![Accuracy of every arm]({NAME}/{summary.name}-arms.png)"
    yield from _against(summary)
    if "corruptions" in drawn:
        yield "### Corruption by corruption"
        yield f"![Accuracy by corruption]({NAME}/{summary.name}-corruptions.png)"
        yield (
            "Accuracy in percent over the severities and seeds; blue is above `full`, red below, in full "
            "colour from 15 points on. Lines part the 15 "
            "common corruptions, the 4 extra ones, and rain. `lora-c` is the named arm."
        )
        yield _best_and_worst(summary)
    if "sizes" in drawn:
        yield "### LoRA-C by rank, setting and ratio"
        yield f"![Accuracy against the number of trained parameters]({NAME}/{summary.name}-sizes.png)"
        yield (
            "Marks are means over the seeds, lines through them reach from the lowest seed to the highest. The two "
            "settings are one curve: `rk` is `r` at another rank. A line jumps where the chosen learning rate does."
        )
    yield "### What the trials came to"
    rates = [trial["lr"] for trial in summary.tried(WHOLE, CLEAN)]
    yield (
        "Validation accuracy in percent of one run at each learning rate; the best rate was taken. The ratio alpha/r "
        "multiplies how fast an adapter moves, but the new head beside it moves at the rate alone: an arm of a large "
        "ratio has to choose between a slow head and a fast adapter. Much of what a ratio does in a short training may "
        "be that."
    )
    yield table(("arm", *(f"{rate:.2g}" for rate in rates)), [_trial_row(summary, arm) for arm in summary.arms])


def _arm_row(summary: Summary, arm: str) -> tuple[str, ...]:
    levels = {measure: summary.level(arm, measure) for measure in summary.measures}
    cells = [
        f"{100 * level.mean:.1f} [{100 * level.interval[0]:.1f}, {100 * level.interval[1]:.1f}]"
        if len(level.values) > 1
        else f"{100 * level.mean:.1f}"
        for level in levels.values()
    ]
    lost = f"{100 * (levels[CLEAN].mean - levels[MCA_19].mean):.1f}" if MCA_19 in levels else "-"
    run = summary.first(arm)
    return (f"`{arm}`", format_count(run["trainable"]), *cells, lost, f"{run['lr']:.2g}")


def _trial_row(summary: Summary, arm: str) -> tuple[str, ...]:
    return (f"`{arm}`", *(f"{100 * trial['val_accuracy']:.1f}" for trial in summary.tried(arm, CLEAN)))


def _against(summary: Summary) -> Iterator[str]:
    measures = [measure for measure in (CLEAN, MCA_19) if measure in summary.measures]
    yield f"### Against `{WHOLE}`"
    yield (
        "In points, paired by seed, with the 95 % interval over the draws of images and the one over the test images; "
        "○: within noise, as at least one holds zero. *Found*: the difference that would have been found over the "
        "draws 8 times in 10."
    )
    rows = [
        (measure, f"`{arm}`", difference_cell(found), over_images_cell(found), detectable_cell(found))
        for measure in measures
        for arm in summary.arms
        if arm != WHOLE
        for found in (summary.contrast([arm], [WHOLE], measure),)
    ]
    yield table(("measure", "arm", "difference", "over test images", "found"), rows)


def _best_and_worst(summary: Summary) -> str:
    """Where the named arm gains most on full fine-tuning and where it loses most."""
    gaps = {name: summary.level(summary.named, name).mean - summary.level(WHOLE, name).mean for name in summary.names}
    told = [f"{named(name)} ({points(gaps[name])})" for name in sorted(gaps, key=lambda name: gaps[name])]
    return (
        f"Against `{WHOLE}`, `{summary.named}` is at its best under {listed(told[:-4:-1])} and at its worst under "
        f"{listed(told[:3])}; a single corruption has no interval here, so none is to be picked out."
    )
