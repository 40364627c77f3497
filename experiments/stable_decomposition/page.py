"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from claims import NOT_HERE, PUBLISHED, judge
from common.text import NOTHING, listed, points, table, words
from figure import draw_all
from plan import BOTH, EQUAL, METHODS, PLAIN, RATES, RESTORING, SEARCH, SQUEEZENET, STABLE, TUNING_SEED, WEIGHTS
from summary import Line, Summary, contrast, left, restored, right_of
from wording import accuracy_cell, difference_cells, interval_cell, percent

from convpeft.evaluation import paired_difference
from convpeft.reporting.provenance import Provenance, provenance_markdown

NAME = "stable_decomposition"


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its plots below `docs`; equal results give equal bytes."""
    summary = Summary(results)
    docs.mkdir(parents=True, exist_ok=True)
    drawn = draw_all(summary, docs / NAME)
    blocks = [
        *_head(summary),
        *_claims(summary),
        *_done(summary),
        *_equal(summary, drawn),
        *_tried(summary, drawn),
        *_searched(summary, drawn),
        *_limits(summary),
        *_missing(summary),
        *_made(summary),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(summary: Summary) -> Iterator[str]:
    yield "# Stable decompositions for compression"
    yield (
        "Convolutions of trained networks become chains of thin ones, after Phan et al. 2020 (arXiv 2008.05441): plain "
        "CPD, CPD with the error-preserving correction, Tucker-2, and Tucker-2 with a corrected CPD of its core. How "
        "the ranks are found is in [Compression](../compression.md). In short:"
    )
    told: dict[str, list[str]] = {}
    for claim in judge(summary):
        if NOT_HERE not in claim.verdict:
            told.setdefault(claim.sentence, []).append(f"{claim.where}: **{claim.verdict}** ({claim.figure})")
    yield "\n".join(f"- {sentence}. {'; '.join(each)}." for sentence, each in told.items())


def _claims(summary: Summary) -> Iterator[str]:
    yield "## Claims"
    yield (
        "Differences are in points of accuracy. *Seeds*: 95 % t-interval over the seeds, each with its own images, "
        "starts of the decompositions and order of training. *Images*: 95 % bootstrap interval over the test images. A "
        "claim is held where both are on its side of the limit; with one seed the images alone decide, and the verdict "
        "says so. *Found*: the difference that would have been found over the seeds 8 times in 10. Ratios are "
        "geometric means."
    )
    headers = ("claim", "where", "figure", "seeds", "images", "found", "verdict")
    yield table(headers, [claim.cells for claim in judge(summary)], right=7)


def _done(summary: Summary) -> Iterator[str]:
    budget = summary.budget
    yield "## What was done"
    steps = budget.epochs * -(-budget.training // 64)
    arms = "`full`, all weights, and `lora`, rank 4 on the thin convolutions; both train the norms and keep the head"
    lines = [
        f"Budget `{summary.name}`. The ranks, and in restoring the epoch, are chosen by {budget.choosing:,} images of "
        f"the training split; {budget.training:,} others of it restore; {budget.testing:,} of the test split judge. A "
        "seed draws them all, and no test image belongs to two seeds. The networks were trained on the whole training "
        "split, the choosing images too, as is usual for who compresses a finished network.",
        f"Search: {budget.candidates} evenly spread ranks of each layer, bisected; the drops of one search share their "
        "trials.",
        f"Restoring: {arms}. {words(budget.epochs).capitalize()} epochs of batches of 64, {steps} steps, AdamW, cosine "
        "with warm-up, no augmentation; the epoch with the best accuracy on the choosing images is kept.",
        f"Rates: {listed(f'{rate:g}' for rate in RATES)} for both ways to restore, tried on the plain and on the "
        f"corrected CPD of {budget.levels[0].network} with seed {TUNING_SEED}, used for nothing else; the highest "
        "accuracy on the choosing images, the mean of both decompositions, wins: "
        + listed(f"{rate:g} for `{arm}`{_at_edge(rate)}" for arm, rate in summary.rates.items())
        + ".",
        "Equal ranks: every layer has the same share of the largest rank that saves parameters; nothing is searched.",
    ]
    if any(sweep.network == SQUEEZENET for sweep in budget.sweeps):
        lines.append(
            f"SqueezeNet: a sample of ImageNet with one image a class. {budget.choosing_imagenet} of one random half "
            "choose, the other half judges; the network was probably trained on them. It is not restored: no second "
            "image of a class is there to train on."
        )
    yield "\n".join(f"- {line}" for line in lines)


def _at_edge(rate: float) -> str:
    return " (at the end of the range)" if rate in (RATES[0], RATES[-1]) else ""


def _equal(summary: Summary, drawn: Sequence[str]) -> Iterator[str]:
    if not summary.networks(EQUAL):
        return
    yield "## At equal ranks: what the correction changes"
    if "sensitivity" in drawn:
        yield f"![Sensitivity with the correction against that without]({NAME}/sensitivity.png)"
        yield (
            "A dot is a layer, with one seed and one share of the ranks. Both have balanced lengths, so none of the "
            "difference is scaling."
        )
    rows = [
        _equal_row(summary.of(EQUAL, network=network, method=method, setting=share))
        for network in summary.networks(EQUAL)
        for share in summary.settings(EQUAL, network)
        for method in (PLAIN, STABLE)
        if summary.of(EQUAL, network=network, method=method, setting=share)
    ]
    headers = ("network", "share", "method", "seeds", "parameters left", "multiplications left", "error")
    headers += ("sensitivity", "largest term", "before", "thin", *RESTORING)
    yield table(headers, rows, right=3)
    yield (
        "Error: norm of what is missing over the kernel's. Largest term: its norm over the kernel's. These and the "
        "sensitivity are medians over layers and seeds. Accuracies: mean over the seeds with its 95 % interval; °: one "
        "seed, with Wilson's interval over the images."
    )
    rows = []
    for network in summary.networks(EQUAL):
        for share in summary.settings(EQUAL, network):
            pairs = summary.pairs(EQUAL, STABLE, PLAIN, network=network, setting=share)
            for stage in ("thin", *RESTORING):
                found = contrast([((a, stage), (b, stage)) for a, b in pairs])
                if found is not None:
                    rows.append((network, f"{share:g}", stage, *difference_cells(found)))
    yield "Corrected less plain CPD, in points, on the same images:"
    yield table(("network", "share", "stage", "difference", "seeds", "images", "found"), rows, right=3)


def _equal_row(lines: Sequence[Line]) -> tuple[str, ...]:
    first, layers = lines[0], [layer for line in lines for layer in line["layers"]]
    error, ss, largest = (statistics.median(x[key] for x in layers) for key in ("error", "sensitivity", "largest"))
    return (
        first["network"],
        f"{first['setting']:g}",
        f"`{first['method']}`",
        str(len(lines)),
        percent(left(first, "parameters")),
        percent(left(first, "multiplications")),
        f"{error:.3f}",
        f"{ss:.3g}",
        f"{largest:.3f}",
        *(accuracy_cell(lines, stage) for stage in ("before", "thin", *RESTORING)),
    )


def _tried(summary: Summary, drawn: Sequence[str]) -> Iterator[str]:
    plain, stable = (summary.tuned(method) for method in (PLAIN, STABLE))
    if plain is None or stable is None:
        return
    yield "## Learning rates"
    yield (
        f"{plain['network']}, share {plain['setting']:g}, seed {TUNING_SEED}. The rates were chosen by the accuracy on "
        "the choosing images; the test accuracy is shown and chose nothing. Last: corrected less plain, in points, "
        "with the interval over the test images and McNemar's p."
    )
    if "rates" in drawn:
        yield f"![Accuracy after restoring, by learning rate]({NAME}/rates.png)"
    rows: list[tuple[str, ...]] = []
    for arm in RESTORING:
        for rate in RATES:
            a, b = (
                next(each for each in line["tried"] if (each["arm"], each["rate"]) == (arm, rate))
                for line in (stable, plain)
            )
            choosing = (percent(b["val_accuracy"]), percent(a["val_accuracy"]))
            test = tuple(percent(each["accuracy"]) if "accuracy" in each else "broke" for each in (b, a))
            rows.append((f"`{arm}`", f"{rate:g}", *choosing, *test, *_paired(a, b)))
    headers = ("restored by", "rate", "plain, choosing", "corrected, choosing", "plain, test", "corrected, test")
    yield table((*headers, "difference", "images", "p"), rows, right=2)


def _paired(a: Line, b: Line) -> tuple[str, str, str]:
    if "right" not in a or "right" not in b:
        return (NOTHING,) * 3
    found = paired_difference(right_of(a), right_of(b), seed=0)
    return points(found.delta), interval_cell(found.low, found.high), f"{found.p_value:.2g}"


def _searched(summary: Summary, drawn: Sequence[str]) -> Iterator[str]:
    networks = summary.networks(SEARCH)
    if not networks:
        return
    yield "## Ranks by search: operations and parameters against accuracy"
    for network in networks:
        name = network.replace("/", "-")
        if name in drawn:
            yield f"![{network}: accuracy against what is left]({NAME}/{name}.png)"
    yield (
        "Hollow: thin, means over the seeds; pale lines reach from the least to the most of them. Filled: restored by "
        "`full`, of the seeds that were restored, above where the same networks were. Grey: the network before."
    )
    rows = [
        _searched_row(lines)
        for network in networks
        for drop in reversed(summary.settings(SEARCH, network))
        for method in METHODS
        if (lines := summary.of(SEARCH, network=network, method=method, setting=drop))
    ]
    headers = ("network", "allowed drop", "method", "seeds", "parameters", "multiplications", "thin layers")
    headers += ("lost, choosing", "before", "thin", "lost, test", "over seeds", "over images", *RESTORING)
    yield table(headers, rows, right=3)
    yield (
        "Drops and losses are in points. Parameters and multiplications are those of the whole network: the share that "
        "is left, and how many times fewer that is, means over the seeds. Lost, choosing: on the images that chose, "
        "where the allowed drop is kept by construction."
    )


def _searched_row(lines: Sequence[Line]) -> tuple[str, ...]:
    first = lines[0]
    found = contrast([((line, "before"), (line, "thin")) for line in lines])
    chosen = statistics.fmean(line["choosing"][0] - line["choosing"][1] for line in lines)
    thin = statistics.fmean(sum("ranks" in layer for layer in line["layers"]) for line in lines)
    return (
        first["network"],
        f"{100 * first['setting']:g}",
        f"`{first['method']}`",
        str(len(lines)),
        *(_left_cell(lines, key) for key in ("parameters", "multiplications")),
        f"{thin:.3g}",
        points(chosen),
        *(accuracy_cell(lines, stage) for stage in ("before", "thin")),
        *difference_cells(found)[:3],
        *(accuracy_cell(lines, arm) if restored(first, arm) else NOTHING for arm in RESTORING),
    )


def _left_cell(lines: Sequence[Line], key: str) -> str:
    share = statistics.fmean(left(line, key) for line in lines)
    return f"{percent(share)} ({1 / share:.2f}x)"


def _limits(summary: Summary) -> Iterator[str]:
    budget = summary.budget
    yield "## How far this goes"
    told = [
        f"The choosing images are few: one of {budget.choosing:,} is {100 / budget.choosing:.2g} points, so a drop of "
        "half a point is a matter of a few images. They were also trained on.",
        f"A search of {budget.candidates} ranks a layer and a common share of the drop for all layers is coarse: what "
        "is left at one drop jumps from seed to seed, and a method may be ahead at one drop and behind at the next.",
        *_bases(summary),
        "Restoring is short, on few images that the network had seen before. A longer one would win back more, and may "
        "change the order.",
        "The rates were tuned at equal ranks on one network and used for all. Rank and sites of `lora` were not tuned."
        + "".join(
            f" The rate of `{arm}` is at the end of the range: another might restore more."
            for arm, rate in summary.rates.items()
            if _at_edge(rate)
        ),
        "Multiplications are counted, not timed: thin layers are bound by memory, and a network with a third of the "
        "multiplications is not three times as fast.",
        "Two claims were put when first figures were known: that on learning rates, which is why it averages over all "
        f"rates and picks none, and `{STABLE}` against `tucker`.",
        f"{len(judge(summary)) - len(PUBLISHED)} claims are looked at one by one at the 5 % level; nothing is "
        "corrected for that.",
    ]
    yield "\n".join(f"- {line}" for line in told)


def _bases(summary: Summary) -> Iterator[str]:
    """How far the bases of Tucker-CPD were narrowed."""
    layers = [x for line in summary.of(SEARCH, method=BOTH) for x in line["layers"] if "ranks" in x]
    if layers:
        shares = [share for x in layers for share in map(operator.truediv, x["ranks"][:2], x["shape"][:2])]
        yield (
            "The kernels of these networks have few channels, and half of the drop hardly narrows them: the bases of "
            f"`{BOTH}` keep a median of {100 * statistics.median(shares):.0f} % of the channels, so that its two more "
            "convolutions cost more than they save. That says little of kernels with hundreds of channels, as those of "
            "the paper."
        )


def _missing(summary: Summary) -> Iterator[str]:
    yield "## Not measured here"
    told: list[str] = []
    if summary.missing:
        done = len(summary.planned) - len(summary.missing)
        names: dict[str, dict[str, None]] = {}
        for case in summary.missing:
            name = f"{case['kind']} of {case['network']} by `{case['method']}`"
            names.setdefault(name, {})[str(case["seed"])] = None
        lacking = "; ".join(
            f"{name} ({'seeds' if len(seeds) > 1 else 'seed'} {listed(seeds)})" for name, seeds in names.items()
        )
        told.append(f"{done} of {len(summary.planned)} cases of this budget are measured. Missing: {lacking}.")
    told.append(
        "VGG-16, ResNet-18 and ResNet-50 on ImageNet, by the commands below. IMAGENET holds `train/CLASS/*.JPEG`, and "
        "the validation set as `test/CLASS/*.JPEG`; a CLASS is a synset such as `n01440764`."
    )
    yield "\n".join(f"- {line}" for line in told)
    commands: list[str] = []
    for _, model, drop, _ in PUBLISHED:
        commands += [
            f"convpeft compress torchvision/{model} --weights {model}.safetensors --data folder:IMAGENET \\",
            f"    --method tucker-cpd --accuracy-drop {drop:g} --images 10000 --out {model}-thin.safetensors",
            f"convpeft train --model compressed:{model}-thin.safetensors --data folder:IMAGENET \\",
            f"    --method lora --set model.keep_head=true --epochs 10 --out runs/{model}",
        ]
    yield "```bash\n" + "\n".join(commands) + "\n```"


def _made(summary: Summary) -> Iterator[str]:
    run = f"python experiments/{NAME}/run.py"
    weights = {line["network"]: line["weights"] for line in summary.inputs}
    images = {
        f"{line['network']}, seed {line['seed']}, {part}": digest
        for line in summary.inputs
        for part, digest in line["images"].items()
        if line["seed"] == summary.budget.seeds[0]
    }
    made = Provenance(
        command=f"{run} run --budget {summary.name} --data DIR",
        page_command=f"{run} page",
        base={f"{network} ({WEIGHTS.get(network, 'trained here')})": digest for network, digest in weights.items()},
        data=images,
        trials=len(RATES),
        ranges={"learning rate of restoring": f"{listed(f'{rate:g}' for rate in RATES)}, the same for both"},
        seeds=summary.budget.seeds,
        detectable="What would have been found 8 times in 10 is in the tables above.",
        versions=summary.versions,
    )
    yield provenance_markdown(made)
    lines = [line for line in summary.lines if "seconds" in line]
    minutes = sum(line["seconds"] for line in lines) / 60
    searched = next((line for line in lines if line["kind"] == SEARCH), None)
    yield (
        f"{len(lines)} cases took {minutes:.0f} minutes of one thread, beside other work on the same cores. Data and "
        "digests above are of the first seed; those of the others are in the results file."
    )
    if searched is not None:
        one = f"--network {searched['network']} --method {searched['method']} --setting {searched['setting']:g}"
        command = f"{run} cell --data DIR {one} --seed {searched['seed']}"
        yield "One case again, its figures beside those that are held:"
        yield f"```bash\n{command}\n```"
