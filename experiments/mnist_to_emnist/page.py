"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.text import NOTHING, table, words
from confusions import confusion_blocks, lookalike_share
from figures import draw_all
from summary import Row, Summary
from wording import compare, difference_cell, inside, mean_cell, percent, points, share_of_gap

from convpeft.reporting import format_bytes, format_count, format_share

NAME = "mnist_to_emnist"


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its plots below `docs`; equal results give equal bytes."""
    summary = Summary(results)
    draw_all(summary, docs / NAME)
    parts = (_head, _protocol, _accuracy, _verdict, _kept, confusion_blocks, _not_tested, _reproduce)
    text = "\n\n".join(block for part in parts for block in part(summary))
    (docs / f"{NAME}.md").write_text(text + "\n", encoding="utf-8")


def _head(summary: Summary) -> Iterator[str]:
    yield "# From MNIST to letters: document 000 on real data"
    yield (
        "Document 000 reports that a small CNN trained on MNIST was adapted to EMNIST with a LoRA adapter in its "
        "projection "
        'layer and a new classifier, and that the result was "modest" because many characters look alike. It gives no '
        "architecture, rank, learning rate or accuracy, so there is no number to match. This page runs the same idea "
        "with controls: the network from scratch, with a new head alone, with LoRA in three places at "
        f"{words(len(summary.grid['ranks']))} ranks, and fine-tuned whole."
    )


def _protocol(summary: Summary) -> Iterator[str]:
    yield "## What was done"
    yield "\n".join(
        f"- {line}" for line in (_base_line(summary), *_budget_lines(summary), *_measure_lines(summary), *summary.notes)
    )


def _base_line(summary: Summary) -> str:
    base, recipe = summary.base, summary.base["recipe"]["train"]
    low, high = base["test_interval"]
    return (
        f"Base: `small-cnn` ({format_count(base['parameters'])} parameters), {recipe['epochs']} epochs on "
        f"{format_count(base['images']['train'])} images of `{summary.grid['base_data']}`, learning rate "
        f"{recipe['lr']:g}, augmentation {base['recipe']['data']['augment']}. Of the "
        f"{format_count(base['images']['test'])} test images {percent(base['test_accuracy'])} are right (Wilson "
        f"interval {100 * low:.2f} to {100 * high:.2f}). It was the first recipe tried."
    )


def _budget_lines(summary: Summary) -> Iterator[str]:
    grid, targets = summary.grid, summary.targets
    sizes = [
        f"`{x}` ({len(y['classes'])} classes, {format_count(y['images']['test'])} test images)"
        for x, y in targets.items()
    ]
    yield f"Targets: {' and '.join(sizes)}. EMNIST is turned upright; upper and lower case of a letter are one class."
    images = next(iter(targets.values()))["images"]["train"]
    yield (
        f"Budget, the same for every arm: {format_count(images)} training images drawn by the seed, "
        f"{grid['train']['epochs']} epochs, batches of {grid['train']['batch_size']}, AdamW, cosine with warm-up, no "
        "augmentation. The epoch with the best validation accuracy is kept."
    )
    yield (
        f"Learning rate: {words(len(grid['arms'][0]['rates']))} values an arm and target, a factor {grid['factor']:g} "
        f"apart, compared on validation with seed {grid['tuning_seed']}, which is used for nothing else. Where the "
        f"best was on the edge, one more beyond it was tried (at most {words(grid['extensions'])} times). LoRA was "
        f"tuned at rank {grid['tuning_rank']}; its rate serves the other ranks. All rates are listed at the end."
    )
    missing = len(grid["seeds"]) - len(summary.seeds)
    yield (
        f"Then {words(len(summary.seeds))} seeds ({', '.join(map(str, summary.seeds))}), each with its own images, "
        "order and starting values; the test split is looked at once, after training."
        + (f" {words(len(grid['seeds'])).capitalize()} were planned; time did not allow more." if missing else "")
    )


def _measure_lines(summary: Summary) -> Iterator[str]:
    yield (
        "LoRA in a convolution is a low-rank matrix reshaped to the kernel. The first convolution takes at most rank "
        "7; "
        'higher ranks are clamped to that there. "Projection" is the linear layer between the convolutions and the '
        "head. "
        "Every arm has a new head."
    )
    images = min(summary.grid["identity_images"], summary.base["images"]["test"])
    yield (
        "What is kept of MNIST: the logits with the adapter off against the base's, bit by bit, on "
        f"{format_count(images)} test images; and the accuracy on all test images with the base's old head on the "
        "adapted features."
    )


def _accuracy(summary: Summary) -> Iterator[str]:
    yield "## Accuracy"
    yield (
        "Mean over seeds ± standard deviation, in brackets the 95 % t-interval of the mean. Differences are in points, "
        "paired by seed, with their 95 % t-interval; ○ marks an interval that holds zero: within the noise of "
        f"{words(len(summary.seeds))} seeds. *Old head* is the accuracy on MNIST with the adapter on and the base's "
        "own head; *stored* is the adapter on disk."
    )
    headers = (
        "arm",
        "rank",
        "trained",
        "share",
        "accuracy",
        "macro F1",
        "to head only",
        "to full",
        "old head",
        "stored",
    )
    for target in summary.targets:
        rows = summary.rows(target)
        yield f"### `{target}`"
        yield table(headers, [_accuracy_row(row, _row(rows, "head"), _row(rows, "full")) for row in rows])
    yield f"![Accuracy against trained parameters]({NAME}/accuracy.png)"
    yield (
        "Bars are 95 % t-intervals. The share is of the base's parameters with its own head of ten classes, so "
        "training everything for more classes is a little above 100 %."
    )


def _accuracy_row(row: Row, head: Row, full: Row) -> tuple[str, ...]:
    first = row.runs[0]
    return (
        row.title,
        "" if row.rank is None else str(row.rank),
        format_count(first["trainable"]),
        format_share(first["trainable"], first["base_parameters"]),
        mean_cell(row.of("test_accuracy")),
        f"{row.of('macro_f1').mean:.4f}",
        "" if row.arm == "head" else difference_cell(row.minus(head)),
        "" if row.arm == "full" else difference_cell(row.minus(full)),
        NOTHING if first["old_head_accuracy"] is None else percent(row.of("old_head_accuracy").mean),
        format_bytes(round(math.fsum(row.values("adapter_bytes")) / len(row.runs))),
    )


def _verdict(summary: Summary) -> Iterator[str]:
    yield "## What LoRA gains and loses"
    for target in summary.targets:
        rows, chosen = summary.rows(target), summary.chosen(target)
        head, full, scratch = (_row(rows, name) for name in ("head", "full", "scratch"))
        document, convolution = (_best_rank(rows, name) for name in ("lora-projection", "lora-conv"))
        gaps = [f"{inside(x.name)}: {share_of_gap(x, head, full)}" for x in (chosen, document, convolution)]
        yield f"`{target}`; the best LoRA arm and rank on validation is {inside(chosen.name)}."
        yield "\n".join(
            (
                f"- Against the head alone. {compare(chosen, head)}",
                f"- Against full fine-tuning. {compare(chosen, full)} It trains "
                f"{format_count(chosen.runs[0]['trainable'])} parameters instead of "
                f"{format_count(full.runs[0]['trainable'])}.",
                f"- Of the {points(full.minus(head).mean)} points that full fine-tuning gains over the head alone, "
                f"these are gained by {'; '.join(dict.fromkeys(gaps))}.",
                f"- The document's arm. {compare(document, head)} {compare(document, full)}",
                f"- Against training from scratch. {compare(chosen, scratch)} {compare(document, scratch)}",
                f"- What the base is worth. {compare(full, scratch)} {compare(head, scratch)}",
            )
        )
    yield _judge_modest(summary)


def _judge_modest(summary: Summary) -> str:
    said: list[str] = []
    for target in summary.targets:
        rows = summary.rows(target)
        document = _best_rank(rows, "lora-projection")
        gain, lost = document.minus(_row(rows, "head")), document.minus(_row(rows, "full"))
        gained = "no gain that can be told" if gain.within_noise else f"{points(gain.mean)} points"
        against = "no difference that can be told" if lost.within_noise else f"{points(lost.mean)} points"
        said.append(
            f"on `{target}` the document's arm reaches {percent(document.of('test_accuracy').mean)}: {gained} against "
            f"a new head alone, {against} against full fine-tuning"
        )
    target = list(summary.targets)[-1]
    rows, classes = summary.rows(target), summary.targets[target]["classes"]
    document, full = (
        lookalike_share(row, classes) for row in (_best_rank(rows, "lora-projection"), _row(rows, "full"))
    )
    return (
        f'The document calls its result "modest". With equal images and epochs, {"; ".join(said)}. It blames '
        "characters that "
        f"look alike: on `{target}` the groups below are {percent(document)} of the errors of its arm, and "
        f"{percent(full)} of those of full fine-tuning, so what they cost is not a cost of LoRA."
    )


def _kept(summary: Summary) -> Iterator[str]:
    yield "## What is kept of MNIST"
    adapted = [run for run in summary.runs if run["off_identical"] is not None]
    same = sum(run["off_identical"] for run in adapted)
    yield (
        f"With the adapter off, {same} of {len(adapted)} adapted networks gave the base's logits bit by bit: the "
        f"base's {percent(summary.base['test_accuracy'])} are there whenever the adapter is switched off. For full "
        "fine-tuning too, as long as the base is stored beside it. The other question is what the adapted features are "
        "worth to the old head, without switching:"
    )
    yield f"![MNIST accuracy with the old head]({NAME}/retention.png)"
    yield "Bars are means, dots are seeds, the dashed line is the base."
    for target in summary.targets:
        rows, chosen = summary.rows(target), summary.chosen(target)
        full, rest = _row(rows, "full"), [row for row in rows if row.arm not in ("head", "scratch")]
        ordered = sorted(rest, key=lambda row: row.of("old_head_accuracy").mean)
        most, least = (
            f"{inside(row.name)} ({percent(row.of('old_head_accuracy').mean)})" for row in (ordered[-1], ordered[0])
        )
        against = chosen.minus(full, "old_head_accuracy")
        yield (
            f"`{target}`: the head alone changes no feature and keeps everything. Of the others {most} keeps most and "
            f"{least} least. {chosen.name} keeps {percent(chosen.of('old_head_accuracy').mean)}, full fine-tuning "
            f"{percent(full.of('old_head_accuracy').mean)}: {difference_cell(against)} points."
        )
    if "mnist+letters" in summary.targets:
        yield "`mnist+letters` trains on digits again, which helps what it keeps; `emnist-letters` shows no digit."
    yield (
        "An arm that learned less also changed less: the arms differ in accuracy and learning rate, so this is not a "
        "comparison at equal gain."
    )


def _not_tested(summary: Summary) -> Iterator[str]:
    images = next(iter(summary.targets.values()))["images"]["train"]
    yield "## What was not tested"
    yield "\n".join(
        (
            "- EMNIST by-class (62 classes, lower case apart), which the document's description fits best: not run.",
            f"- The full training sets: {format_count(images)} images and {summary.grid['train']['epochs']} epochs are "
            "a small budget. More may change the order of the arms, most of all for training from scratch.",
            "- One base, one network, one optimiser. Seeds vary images, order and starting values but not the base, so "
            "the intervals say nothing about another base.",
            "- Rates were tuned with one seed, and for LoRA at one rank; a validation split of this size tells "
            "neighbouring rates apart poorly. Epochs were not tuned. No correction is made for the number of "
            "comparisons.",
            "- Digits and letters of one origin: EMNIST's own digits, which were cut out as its letters were.",
            "- Time and memory: other work ran on the same two cores, so seconds are recorded but not compared.",
        )
    )


def _reproduce(summary: Summary) -> Iterator[str]:
    base, versions = summary.base, summary.versions
    yield "## Command, rates and versions"
    yield (
        "```bash\n"
        f"python experiments/{NAME}/run.py all --data ROOT  # the folder with MNIST/raw and EMNIST/raw\n"
        f"python experiments/{NAME}/run.py page             # this page and its plots, from results.jsonl\n"
        "```"
    )
    yield "Learning rates tried, the chosen one bold:"
    arms = summary.grid["arms"]
    found = {(arm["title"], target): summary.rates(target, arm["name"]) for arm in arms for target in summary.targets}
    cells = {
        key: ", ".join(f"**{x:g}**" if x == best else f"{x:g}" for x in tried) for key, (tried, best) in found.items()
    }
    rows = [(arm["title"], *(cells[arm["title"], target] for target in summary.targets)) for arm in arms]
    yield table(("arm", *(f"`{target}`" for target in summary.targets)), rows)
    edges = [f"{inside(a)} on `{t}`" for (a, t), (tried, best) in found.items() if best in (tried[0], tried[-1])]
    if edges:
        yield f"Still on the edge of what was tried: {', '.join(edges)}."
    minutes = math.fsum(line["seconds"] for line in (*summary.trials, *summary.runs)) / 60
    yield (
        f"{len(summary.trials)} trials and {len(summary.runs)} runs took {minutes:.0f} minutes by the clock, summed "
        "over processes of one thread each."
    )
    told = ", ".join(f"{name} {value}" for name, value in versions.items() if name not in ("threads", "device"))
    yield (
        f"Base weights: sha256 `{base['sha256']}`, fingerprint `{base['fingerprint']}`. The base was trained with "
        f"{base['versions']['threads']} threads; another machine may round otherwise and get another base. Versions: "
        f"{told}; {versions['device']}."
    )


def _row(rows: Sequence[Row], arm: str) -> Row:
    return next(row for row in rows if row.arm == arm)


def _best_rank(rows: Sequence[Row], arm: str) -> Row:
    """The rank of an arm with the highest mean accuracy on validation."""
    return max((row for row in rows if row.arm == arm), key=lambda row: math.fsum(row.values("val_accuracy")))
