"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from against_lora import in_short, lora_blocks
from arms import COLORA, DEPTHWISE, HEAD, LORA, MERGED, WHOLE
from claims import claim_blocks, short_verdict
from common.blocks import provenance_block
from common.comparison import Cell, Comparison, Setting
from common.text import NOTHING, listed, points, table, words
from common.wording import accuracy_cell
from counts import count_blocks
from figure import draw_all
from folds import Folds, read_comparisons
from measures import auc_values, epoch_seconds, lost_elsewhere, span
from plan import draws_planned
from published import DIFFERENCES

from convpeft.reporting import format_count

NAME = "colora"
CELL = r"""
convpeft compare oct.toml --out OTHER --set base.data.fold=2 --set 'grid.seeds=[2]' --set baseline=colora \
    --set 'arm=[{name="colora", method={name="colora"}}]' \
    --set 'grid.setting=[{data={per_class=10, val_per_class=10}, train={epochs=8}}]'
""".strip()


def write_page(results: Path, counts: Path, docs: Path) -> None:
    """Write the page and its plots below `docs`; equal results give equal bytes."""
    budget, comparisons = read_comparisons(results)
    drawn = draw_all(comparisons, docs / NAME)
    blocks = [
        *_head(comparisons),
        *lora_blocks(comparisons),
        *(f"![Differences to a k x k LoRA, {f.content['title']}]({NAME}/{p})" for f, p in drawn["differences"]),
        "Points more accurate than `lora`. Thick: 95 % interval over the draws; thin: over the test images. Grey: at "
        "least one of them holds zero.",
        *claim_blocks(comparisons),
        *count_blocks(json.loads(counts.read_text(encoding="utf-8"))),
        *_done(budget, comparisons),
        *(block for found in comparisons for block in _transfer(found)),
        "## From draw to draw",
        *(f"![Accuracy of each draw, {found.content['title']}]({NAME}/{plot})" for found, plot in drawn["draws"]),
        "A mark is one draw: a fold with its own seed, or a seed. The line is the mean. Folds differ in how hard they "
        "are, for every arm alike.",
        *_limits(comparisons),
        _reproduce(budget, comparisons),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "# CoLoRA"
    yield (
        "CoLoRA (Rivera and Hoyos, 2025, arXiv 2505.18315) adds to each kernel a separable convolution: a vector of "
        "channels times one spatial pattern for each filter. The paper finds it accurate, stable and fast on VGG16 and "
        "OCT images. This page tries it on two other networks and on images at hand, every arm with its learning rate "
        "tuned alike, and against a k x k LoRA, which the paper did not compare. In short:"
    )
    lines = list(in_short(comparisons))
    for found in comparisons:
        for setting in found.settings:
            against = [arm for arm in (HEAD, WHOLE) if arm in found.arms]
            told = listed(short_verdict(found, arm, setting) for arm in against)
            lines.append(f"{found.content['title']}, {setting}: CoLoRA is {told}.")
    lines.append(
        "VGG16: the published parameter counts are convpeft's, but for one row that carries the wrong label; the "
        "paper's *Conv-LoRA* is a 1 x 1 convolution of low rank. See the counts."
    )
    lines.append("Transformers, state-space and KAN networks: not testable here; the published figures are below.")
    yield "\n".join(f"- {line}" for line in lines)


def _done(budget: str, comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "## What was done"
    first = comparisons[0].content
    lines = [*map(_data_line, comparisons), *_unfinished(budget, comparisons)]
    lines += [
        f"Budget, the same for every arm of a row below: batches of {first['train']['batch_size']}, AdamW, cosine with "
        "warm-up, no augmentation. The epoch with the best validation accuracy is kept, and the test split is looked "
        "at once, after training.",
        f"Learning rate: {words(first['trials'])} values for each arm and amount of images, spread evenly over "
        f"{first['ranges'].get('train.lr', 'nothing')}, the same for all; the highest validation accuracy wins (seed "
        f"{first['tuning_seed']}, used for nothing else). Each fold that is tested on has a tuning of its own, on its "
        "own validation fold, so that no test image has any part in it.",
        "A draw, a fold or a seed, fixes training and validation images, their order and the starting values, the same "
        "for every arm: differences are paired by draw.",
        f"Each arm has a new head. `{COLORA}` has the pointwise factor first, is never merged in training, and keeps "
        f"one bias a layer, at the output; `{MERGED}` adds its product to a frozen sum after each epoch and draws "
        "anew. Norms are frozen, except that `full` trains them with their statistics and `norm-tuning` their gains "
        "and shifts.",
    ]
    yield "\n".join(f"- {line}" for line in lines)
    yield table(
        ("transfer", "images", "training images", "validation images", "epochs", "validation less test"),
        [_size_row(found, setting) for found in comparisons for setting in found.settings],
    )
    yield (
        "Validation chooses epoch and learning rate, so its own accuracy is too high; the last column is by how many "
        "points it lies above the test accuracy, over arms and draws."
    )
    yield "What the paper did, and this does not:"
    yield "\n".join(f"- {line}" for line in DIFFERENCES)


def _data_line(found: Comparison) -> str:
    content = found.content
    pixels = f" at {content['model']['image_size']} pixels" if "image_size" in content["model"] else ""
    told = f"{content['title']}: `{content['source']}` from `{content['model']['source']}`{pixels}, "
    if not isinstance(found, Folds):
        return f"{told}{format_count(found.test_images)} test images; draws: {words(len(found.seeds))}."
    patients, orders = "", ""
    if DEPTHWISE not in found.arms:
        orders = " Its spatial layers but the first are depthwise, where both orders of CoLoRA are the same map."
    if content["test_groups"] is not None:
        patients = f" of {format_count(len(set(content['test_groups'])))} patients, of whom none is in two splits"
    return (
        f"{told}tested on {words(len(found.seeds))} folds in turn, with the next fold for validation and the others "
        f"for training: {format_count(found.test_images)} test images{patients}.{orders}"
    )


def _unfinished(budget: str, comparisons: Sequence[Comparison]) -> Iterator[str]:
    there = {found.name: len(found.seeds) for found in comparisons}
    for name, (title, count) in draws_planned(budget).items():
        if there.get(name, 0) < count:
            done = words(there[name]) if name in there else "none"
            yield f"{title}: {done} of {words(count)} draws that are planned are there. The command below goes on."


def _size_row(found: Comparison, setting: Setting) -> tuple[str, ...]:
    runs = [run for arm in found.arms for run in found.cell(arm, setting).runs]
    excess = statistics.fmean(run["val_accuracy"] - run["test_accuracy"] for run in runs)
    sizes = [span((run["images"][split] for run in runs), "d") for split in ("train", "val")]
    return (found.content["title"], str(setting), *sizes, str(runs[0]["epochs"]), points(excess))


def _transfer(found: Comparison) -> Iterator[str]:
    title = found.content["title"]
    yield f"## {title}"
    yield (
        "Test accuracy: mean over the draws ± standard deviation, in brackets the 95 % t-interval of the mean; AUC "
        "with its deviation; learning rates by draw where they differ; how many points of validation accuracy the "
        "rates that were not chosen lose on average; seconds that an epoch of training takes, the median over the "
        "draws (the machine had other work; compare within a table, not more)."
    )
    for setting in found.settings:
        yield f"### {title}, {setting}"
        yield table(
            ("arm", "trained", "accuracy", "AUC", "learning rate", "lost at the others", "seconds an epoch"),
            [_arm_row(found, found.cell(arm, setting)) for arm in found.arms],
        )


def _arm_row(found: Comparison, cell: Cell) -> tuple[str, ...]:
    auc = auc_values(found, cell.arm, cell.setting)
    spread = f" ± {statistics.stdev(auc):.3f}" if len(auc) > 1 else ""
    lost = lost_elsewhere(found, cell.arm, cell.setting)
    return (
        f"`{cell.arm}`",
        format_count(cell.runs[0]["trainable"]),
        accuracy_cell(cell),
        f"{statistics.fmean(auc):.3f}{spread}" if auc else NOTHING,
        span((run["lr"] for run in cell.runs), ".2g"),
        NOTHING if lost is None else f"{100 * lost:.1f}",
        f"{epoch_seconds(found, cell.arm, cell.setting):.2f}",
    )


def _limits(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "## How far this goes"
    compared = sum(len(found.settings) * (len(found.arms) - 1) for found in comparisons)
    folded = [found for found in comparisons if isinstance(found, Folds)]
    lines = [
        f"{compared} differences to `{LORA}` can be looked at, at the 5 % level each: about {0.05 * compared:.0f} of "
        "them would be beyond noise by chance alone. No correction is made.",
        *_edges(comparisons),
        "CoLoRA trains a bias in each of its layers and LoRA none; `bitfit` shows what biases alone give. Ranks and "
        "other options were not tuned.",
        "In a depthwise layer each filter has one channel, so that CoLoRA and a LoRA of nearly full rank can both make "
        "any change of it: there the two differ in how they are parametrised, and that is all. Layers with many "
        "channels, as in VGG16, are those of `cifar-resnet/20` here, and of SqueezeNet in the full budget.",
        "Training is short and images are small, to suit two cores; a longer training may change the order.",
    ]
    if folded:
        lines.insert(
            1,
            "Folds share training images, so that draws are not independent and their interval is somewhat too narrow. "
            "The interval over the test images takes the trained networks as they are.",
        )
    if any(found.name == "oct" for found in folded):
        lines.append(
            "Retinal OCT had one arm more at first, LoRA on every convolution. It was taken out to save time after the "
            "first fold had been tested, where it was the least accurate with 10 a class; no table holds it."
        )
    if any(run["lr"] != cell.runs[0]["lr"] for found in folded for cell in found.cells() for run in cell.runs):
        lines.append(
            "Few rates are tried, and few validation images choose among them, for each fold anew: where a row shows "
            "two rates, part of what differs from fold to fold is that choice."
        )
    yield "\n".join(f"- {line}" for line in lines)


def _edges(comparisons: Sequence[Comparison]) -> Iterator[str]:
    for found in comparisons:
        edges = found.at_edge()
        tunings = len(found.cells()) * (len(found.seeds) if isinstance(found, Folds) else 1)
        named = [f"`{arm}`, {each} ({rate:.2g})" for arm, each, rate in dict.fromkeys(edges)]
        told = (
            f"{found.content['title']}: {len(edges)} of {tunings} chosen learning rates are at an end of what was tried"
        )
        yield told + (f": {listed(named)}. A wider range might do better there." if edges else ".")


def _reproduce(budget: str, comparisons: Sequence[Comparison]) -> str:
    gaps = [found.contrast([COLORA], [LORA], each) for found in comparisons for each in found.settings]
    known = [gap.seeds.detectable for gap in gaps if gap.seeds.detectable is not None]
    told = (
        f"CoLoRA against `{LORA}`: {100 * min(known):.1f} to {100 * max(known):.1f} points would have been found 8 "
        "times in 10 at the 5 % level."
        if known
        else ""
    )
    return (
        provenance_block(NAME, budget, comparisons, detectable=told)
        + " Where there are folds, the command of the first is shown; for another, set `base.data.fold` and "
        "`grid.seeds` to its number. To make one cell again, name its arm and its amount of images too:\n\n"
        f"```bash\n{CELL}\n```\n\n"
        "It is tuned again first, as it was. The digests of the images that each draw took are in the results file."
    )
