"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from arms import FROZEN, WHOLE, adapters_of
from claims import claim_blocks
from common.blocks import (
    accuracy_table,
    data_line,
    difference_row,
    earlier_lines,
    edges_line,
    provenance_block,
    steps_told,
    unfinished_lines,
)
from common.comparison import Comparison, Setting
from common.text import listed, points, table, words
from common.wording import difference, relation, sentence
from figure import draw_all
from plan import BUDGETS, EARLIER

NAME = "small_data"


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its plots below `docs`; equal results give equal bytes."""
    content = json.loads(results.read_text(encoding="utf-8"))
    summaries = [Comparison(name, task) for name, task in content["tasks"].items()]
    if not summaries:
        raise SystemExit(f"{results}: holds no comparison yet. Run one first.")
    drawn = draw_all(summaries, docs / NAME)
    lacking = [task.title for task in BUDGETS[content["budget"]] if task.name not in content["tasks"]]
    blocks = [
        *_head(summaries, lacking),
        *claim_blocks(summaries),
        *_done(summaries),
        "## Accuracy",
        f"![Test accuracy against training images a class]({NAME}/accuracy.png)",
        "Means over the seeds with their 95 % intervals; arms stand side by side so that these can be told apart.",
        *(block for summary in summaries for block in _transfer(summary, drawn)),
        *_limits(summaries, content["budget"]),
        _reproduce(content["budget"], summaries),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(summaries: Sequence[Comparison], lacking: Sequence[str]) -> Iterator[str]:
    sizes = listed(sorted({size for summary in summaries for size in summary.settings}))
    yield f"# Small data: {sizes} images a class"
    yield (
        f"Where do adapters beat full fine-tuning when there are only {sizes} training images a class? "
        f"{listed(summary.content['title'] for summary in summaries)}, every arm tuned alike. In short:"
    )
    lines = [line for summary in summaries for line in _short(summary)]
    lines += [f"{title}: belongs to this budget and is not measured yet; the command below does." for title in lacking]
    yield "\n".join(f"- {line}" for line in lines)


def _short(summary: Comparison) -> Iterator[str]:
    at_edge = {setting for arm, setting, _ in summary.at_edge() if arm == WHOLE}
    for size in summary.settings:
        found = summary.contrast(adapters_of(summary), [WHOLE], size)
        better, worse = (
            [f"`{a}`" for a in adapters_of(summary) if summary.contrast([a], [WHOLE], size).sign == s] for s in (1, -1)
        )
        each = f"one by one, {listed(better)} beat it" if better else "none of them beats it by itself"
        each += f", and it beats {listed(worse)}" if worse else ""
        if size in at_edge:
            each += f". The rate of `{WHOLE}` is at an end of what was tried here, so another may undo this"
        yield (
            f"{summary.content['title']}, {size} images a class: the adapters together are {relation(found)} full "
            f"fine-tuning ({difference(found)} points); {each}."
        )


def _done(summaries: Sequence[Comparison]) -> Iterator[str]:
    yield "## What was done"
    lines = [*map(data_line, summaries), *unfinished_lines(summaries)]
    first = summaries[0]
    lines += [
        f"Budget, the same for every arm of a row below: batches of {first.content['train']['batch_size']}, AdamW, "
        "cosine with warm-up, no augmentation. The epoch with the best validation accuracy is kept, and the test "
        "split is looked at once, after training.",
        f"Learning rate: {words(first.content['trials'])} values for each arm and number of images, spread evenly over "
        f"{first.content['ranges'].get('train.lr', 'nothing')}, the same for all; the highest validation accuracy wins "
        f"(seed {first.content['tuning_seed']}, used for nothing else, with images of its own draw).",
        f"Then {words(len(first.seeds))} seeds. A seed draws training images, validation images, order and starting "
        "values, the same for every arm, so that differences are paired by seed.",
        "Each arm has a new head. `full` trains the statistics of its norms too, as is usual; "
        f"`{FROZEN}` trains all weights of the convolutions and leaves the norms as they were.",
    ]
    yield "\n".join(f"- {line}" for line in lines)
    yield table(
        ("transfer", "images a class", "training images", "validation images", "epochs", "validation less test"),
        [_size_row(summary, size) for summary in summaries for size in summary.settings],
    )
    yield (
        "Validation is drawn as small as training, since who has few images has few to choose by. It chooses epoch and "
        "learning rate, so its own accuracy is too high; the last column is how many points it lies above the test "
        "accuracy, on average over arms and seeds, which holds also what sets the two splits apart. The learning rate "
        "comes from one more draw of training and validation images, so that a figure "
        "rests on up to four times as many labelled images as its size says."
    )


def _size_row(summary: Comparison, size: Setting) -> tuple[str, ...]:
    runs = [run for arm in summary.arms for run in summary.cell(arm, size).runs]
    excess = statistics.fmean(run["val_accuracy"] - run["test_accuracy"] for run in runs)
    images, epochs = runs[0]["images"], runs[0]["epochs"]
    found = (size, images["train"], images["val"], epochs)
    return (summary.content["title"], *map(str, found), points(excess))


def _transfer(summary: Comparison, drawn: Sequence[str]) -> Iterator[str]:
    title = summary.content["title"]
    yield f"## {title}"
    yield "Test accuracy: mean over the seeds ± standard deviation, in brackets the 95 % t-interval of the mean."
    yield accuracy_table(summary, [f"{size} a class" for size in summary.settings])
    if f"differences-{summary.name}" in drawn:
        yield f"![Differences to full fine-tuning, {title}]({NAME}/differences-{summary.name}.png)"
        yield (
            "Points more accurate than `full`. Thick: 95 % interval over the draws of training images; thin: over the "
            "test images. Grey: at least one of them holds zero."
        )
    for against in [arm for arm in (WHOLE, FROZEN) if arm in summary.arms]:
        yield f"### {title}: against `{against}`"
        yield (
            "In points, paired by seed, with the 95 % interval over the draws of images and the one over the test "
            "images; ○: within noise, as at least one holds zero. *Found*: the difference that would have been found "
            "over the draws 8 times in 10."
        )
        arms = [arm for arm in summary.arms if arm != against]
        rows = [
            (str(size), f"`{arm}`", *difference_row(summary, [arm], [against], size))
            for size in summary.settings
            for arm in arms
        ]
        yield table(("images a class", "arm", "difference", "over test images", "found"), rows)
    if WHOLE in summary.arms:
        yield "\n".join(
            f"- {size} a class: {sentence(summary.contrast([arm], [WHOLE], size), a=arm, b=WHOLE)}"
            for size in summary.settings
            for arm in summary.arms
            if arm != WHOLE
        )


def _limits(summaries: Sequence[Comparison], budget: str) -> Iterator[str]:
    yield "## How far this goes"
    compared = sum((len(summary.arms) - 1) * len(summary.settings) for summary in summaries)
    lines = [
        f"{compared} differences to `full` are looked at one by one at the 5 % level: about "
        f"{0.05 * compared:.0f} would be beyond noise by chance alone. The claims rest on the mean of the adapters, "
        "which was chosen as the figure to judge by before anything was trained.",
        edges_line(summaries, setting="{} a class"),
        f"One draw chose each learning rate, by {min(_validations(summaries))} to {max(_validations(summaries))} "
        "validation images. Another draw may choose another; that is part of having little data, but the intervals do "
        "not hold it.",
        "One test split each: the interval over the test images says what other images of the same kind might give, "
        "not other hospitals.",
        f"Training is short, {steps_told(summaries)} steps, to suit two cores; a longer one may change the order.",
        "Ranks and other options were not tuned. Not measured: augmentation, other networks, larger images, larger "
        "validation splits, other ways to regularise full fine-tuning, time and memory.",
        *earlier_lines(EARLIER, budget),
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _validations(summaries: Sequence[Comparison]) -> list[int]:
    return [run["images"]["val"] for summary in summaries for run in summary.content["runs"]]


def _reproduce(budget: str, summaries: Sequence[Comparison]) -> str:
    found = [
        summary.contrast(adapters_of(summary), [WHOLE], size).seeds.detectable
        for summary in summaries
        for size in summary.settings
    ]
    known = [each for each in found if each is not None]
    told = (
        ""
        if not known
        else f"Adapters together against `full`: {100 * min(known):.1f} to "
        f"{100 * max(known):.1f} points would have been found 8 times in 10 at the 5 % level."
    )
    return (
        provenance_block(NAME, budget, summaries, detectable=told)
        + " To make one cell of a table again, name its arm, its size and "
        "a new seed: `convpeft compare GRID --set 'grid.seeds=[7]' --set ...`. The digests of the images that each "
        "seed drew are in the results file."
    )
