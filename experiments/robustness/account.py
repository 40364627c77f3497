"""What was done, what the paper did otherwise, how far it goes and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from claims import claims
from common.blocks import earlier_lines, edges_told, steps_told, unfinished_lines
from common.text import listed, words
from plan import EARLIER
from summary import MCA_19, WHOLE, Summary

from convpeft.data.corruptions.names import SEVERITIES
from convpeft.reporting import format_count
from convpeft.reporting.provenance import Provenance, provenance_markdown

_OWN_IMAGES = "resnet20_cifar10"
_OTHERWISE = (
    "Its networks are ResNet-18 to 101 from ImageNet; a new 3x3 stem was put in and trained whole. Here the stem is "
    "the pretrained one, adapted like every other convolution.",
    "The statistics of its norms moved on in training while their weights were frozen. So they do here "
    '(`norm = "adapt"`). Its code also set all pretrained biases of the norms to zero; here they are kept.',
    "It trained for 300 epochs on all images, by SGD, every arm with the rate 0.1. Here training is short, on few "
    "images, with AdamW, and every arm has a rate of its own.",
    "It kept the epoch that was best on the test set. Here validation chooses.",
    'Its released code mixes the axes of the update (`layout = "loralib"` here) and has setting `rk` only. Here the '
    "update is that of its formula, in both settings.",
    "Its baselines are the standard network and full fine-tuning. A new head alone, norm-tuning and AugMix are added.",
)


def done_lines(summary: Summary) -> Iterator[str]:
    """What was done in a task."""
    content, first = summary.content, summary.first(WHOLE)
    images, network, target = first["images"], content["model"]["source"], content["images"]
    base = content["weights"]
    if base == _OWN_IMAGES:
        yield f"The base, `{base}`, was trained on CIFAR-10 itself: no other was at hand, so nothing is transferred."
    elif base:
        yield f"From `{network}` with the weights `{base}`, trained on other images, to `{target}`."
    else:
        yield f"From `{network}` with random weights to `{target}`: a trial of the program, no result."
    pool = "all training images" if content["pool"] is None else f"{content['pool']:,} training images of each class"
    yield (
        f"{images['train']:,} training and {images['val']:,} validation images, drawn by the seed from {pool}, the "
        f"same for every arm; {images['test']:,} test images, as many of each class, which chose nothing."
    )
    yield (
        f"{first['epochs']} epochs in batches of {content['train']['batch_size']}, AdamW, cosine with warm-up, shifts "
        "and flips; the epoch with the best validation accuracy is kept. AugMix comes after shifts and flips, without "
        "its consistency loss."
    )
    yield (
        f"Learning rate: {words(content['trials'])} values for every arm, spread evenly over "
        f"{content['ranges'].get('train.lr', 'nothing')}, the same for all; the highest validation accuracy on clean "
        f"images wins (seed {content['tuning_seed']}, used for nothing else, with images of its own draw). The ratio "
        "alpha/r multiplies what a rate does, so each ratio has a rate of its own."
    )
    yield f"Seeds: {', '.join(map(str, summary.seeds))}. A seed draws images, order and starting values."
    yield from unfinished_lines([summary])
    yield (
        "`probe` trains a new head alone. `scratch` is what the paper calls standard: the same network from a random "
        "start, all of it trained. `norm-tuning`, `full` and LoRA-C re-estimate the statistics of the norms on the new "
        "images; LoRA-C trains none of the norms' own weights, as in the paper."
    )
    yield from _corrupted_lines(content["corrupted"])


def _corrupted_lines(told: Mapping[str, Any] | None) -> Iterator[str]:
    if told is None:
        yield "There are no corrupted images: the test images themselves are of a style that training has not seen."
        return
    if told["origin"] == "files":
        yield f"The corrupted images are those of the published files: {len(told['names'])} corruptions."
    else:
        yield (
            "The corrupted images are regenerated with the constants of CIFAR-10-C, seeded by corruption, severity and "
            "the image's number: 19 corruptions and rain, five severities. They are close to the published files, not "
            "equal to them: these figures compare arms, they do not stand beside published ones. Frost is drawn by a "
            "formula, where the published set has photographs. Rain is in document 004 but not in CIFAR-10-C; its "
            "constants are this library's own."
        )
    forms, count = len(told["names"]) * len(SEVERITIES), len(told["labels"]) // told["parts"]
    which = ", one in " + words(told["parts"]) + " of every class, in turn" if told["parts"] > 1 else ""
    yield (
        f"Each of the {forms} forms (corruption and severity) is that of {count:,} test images{which}: "
        f"{forms * count:,} answers a run. mCA-15 is the mean accuracy over the 15 common corruptions, mCA-19 with the "
        "4 extra ones, all severities alike; rain stands apart. For the interval over test images, an image with all "
        "its forms counts as one."
    )


def limit_blocks(summaries: Sequence[Summary], budget: str) -> Iterator[str]:
    """What the paper did otherwise, and what cannot be concluded."""
    yield "## What the paper did otherwise"
    yield "\n".join(f"- {line}" for line in _OTHERWISE)
    yield "## How far this goes"
    lines = [line for summary in summaries for line in _limits_of(summary)]
    lines += [
        "The ratio 2 was compared with two others, not swept. A rate for each ratio makes up for part of what a ratio "
        "does, but not for the head, which has the same rate (see the trials); and few rates do so coarsely.",
        "Not measured: training on the test corruptions themselves, AugMix's consistency loss, longer training, larger "
        "networks, the published files. `--budget full` does the last three where the files are given: CIFAR-10 and "
        "CIFAR-100 from ResNet-34, 50 and 101, and Icons-50.",
        *earlier_lines(EARLIER, budget),
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _limits_of(summary: Summary) -> Iterator[str]:
    compared, run = sum(1 for _ in claims(summary)), summary.first(WHOLE)
    yield (
        f"{compared} differences are looked at one by one at the 5 % level: about {0.05 * compared:.0f} would be "
        "beyond noise by chance alone."
    )
    edges = summary.at_edge()
    listed_edges = f": {listed(f'`{arm}` ({rate:.2g})' for arm, _, rate in edges)}" if edges else ""
    yield (
        f"{edges_told(len(edges), len(summary.arms))}{listed_edges}. Each was chosen by single runs on "
        f"{run['images']['val']:,} validation images; the intervals hold nothing of that choice, which another draw "
        "may make otherwise."
    )
    wide, _ = summary.matched("setting", "rk", "r")
    if wide:
        largest = max((summary.first(arm) for arm in wide), key=lambda each: each["method"]["rank"])
        yield (
            f"At rank {largest['method']['rank']}, setting `rk` trains {format_count(largest['trainable'])} numbers, "
            f"{largest['trainable'] / run['trainable']:.0%} of `{WHOLE}`; in layers that take no such rank it is "
            "clamped to the largest that they take."
        )
    yield (
        f"Training is {steps_told([summary])} steps long, to suit one core; the paper's is some 117,000. A longer one "
        "may change the order of the arms."
    )


def reproduce_block(budget: str, summaries: Sequence[Summary]) -> str:
    """The commands, digests and versions."""
    content = [summary.content for summary in summaries]
    measure = {summary.name: MCA_19 if MCA_19 in summary.measures else summary.measures[-1] for summary in summaries}
    found = [summary.contrast([summary.named], [WHOLE], measure[summary.name]).seeds for summary in summaries]
    known = [f"{100 * each.detectable:.1f}" for each in found if each.detectable is not None]
    where = f"--budget {budget} --data DIR"
    made = Provenance(
        command=f"python experiments/robustness/run.py run {where}\n"
        f"python experiments/robustness/run.py cell {shlex.quote(summaries[0].named)} --seed 0 {where}",
        page_command="python experiments/robustness/run.py page",
        base={f"{each['model']['source']} ({each['weights'] or 'random'})": each["base_digest"] for each in content},
        data={f"{each['images']}, test images": each["test_digest"] for each in content}
        | {
            f"{each['images']}, corrupted, {each['corrupted']['origin']}": each["corrupted"]["digest"]
            for each in content
            if each["corrupted"]
        },
        trials=content[0]["trials"],
        ranges=content[0]["ranges"],
        seeds=tuple(summaries[0].seeds),
        detectable=f"LoRA-C against `{WHOLE}`, {listed(measure.values())}: {listed(known)} points would have been "
        "found over the draws 8 times in 10."
        if known
        else "",
        versions=content[0]["versions"],
    )
    lines = [line for each in content for line in (*each["runs"], *each["tried"])]
    minutes = sum(line["seconds"] + line.get("measuring_seconds", 0.0) for line in lines) / 60
    return (
        provenance_markdown(made)
        + "\n\nThe second command makes one cell again: it tunes, trains and measures one arm with one seed, and "
        f"prints what the results file should say of it. {len(lines)} runs and trials took {minutes:.0f} minutes of "
        "one thread. The grid is one for `convpeft compare`; `convpeft robustness` measures any run of it by itself."
    )
