"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common.answers import unpacked
from plan import MODES

from convpeft.evaluation import Difference, paired_difference

NAME = "kernels"
Runs = dict[tuple[str, int], dict[str, Any]]


def write_page(content: dict[str, Any], docs: Path) -> None:
    """Write the page below `docs`; equal results give equal bytes."""
    blocks = [*_head(content), *_differences(content), *_accuracies(content), *_reproduce(content)]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def differences(content: dict[str, Any]) -> dict[tuple[str, int], Difference]:
    """Accuracy of each way less that of its definition with the same seed, on the same images."""
    runs = _runs(content)
    return {
        (mode, seed): paired_difference(
            _right(runs[mode, seed], content), _right(runs[told.against, seed], content), seed=seed
        )
        for mode, told in MODES.items()
        for seed in content["budget"]["seeds"]
        if told.against and (mode, seed) in runs and (told.against, seed) in runs
    }


def _runs(content: dict[str, Any]) -> Runs:
    return {(run["mode"], run["seed"]): run for run in content["runs"]}


def _right(run: dict[str, Any], content: dict[str, Any]) -> np.ndarray:
    return unpacked(run["right"], content["budget"]["test"]).astype(bool)


def _head(content: dict[str, Any]) -> Iterator[str]:
    budget = content["budget"]
    yield "# Whether accuracy pays for speed"
    yield (
        "Kernels, memory layout and folding compute the same function as the definition, in another order of "
        "roundings; bf16 and the prefix cache, which keeps features in half precision, round more. Here the same "
        "training is done in each way from the same start, on the same images in the same order."
    )
    yield (
        f"`{budget['network']}` trained on Tiny ImageNet, to CIFAR-10: {budget['train']:,} training images, "
        f"{budget['val']:,} for the choice of the epoch, {budget['test']:,} of the test split; {budget['epochs']} "
        f"epochs in batches of {budget['batch_size']}, rank {budget['rank']} on every convolution, no augmentation, "
        "everything else default. A seed fixes images, order and starting values."
    )


def _differences(content: dict[str, Any]) -> Iterator[str]:
    found = differences(content)
    seeds = content["budget"]["seeds"]
    yield "## Against the definition"
    yield (
        "Points of test accuracy more than the definition with the same trained parameters, and in brackets the 95 % "
        "interval of a paired bootstrap over the test images; p is that of McNemar's exact test on the same images."
    )
    rows, below = [], []
    for mode, told in MODES.items():
        own = [found[mode, seed] for seed in seeds if (mode, seed) in found]
        if not own:
            continue
        outside = sum(not each.low <= 0 <= each.high for each in own)
        mean = statistics.fmean(each.delta for each in own)
        below += [
            f"{told.title} with seed {seed} (p = {each.p_value:.2f})"
            for seed, each in zip(seeds, own, strict=False)
            if each.high < 0
        ]
        verdict = f"{len(own) - outside} of {len(own)}"
        rows.append((told.title, *(_points(each) for each in own), f"{100 * mean:+.2f}", verdict))
    yield _markdown(("way", *(f"seed {seed}" for seed in seeds), "mean", "zero inside"), rows)
    yield f"Below zero with their whole interval: {'; '.join(below)}." if below else "No interval lies below zero."
    yield (
        f"{len(found)} comparisons at this level leave out zero by chance in about {0.05 * len(found):.1f} of them. "
        f"With {content['budget']['test']:,} images a difference of less than about half a point cannot be seen, "
        "unless the two are wrong on nearly the same images."
    )


def _points(difference: Difference) -> str:
    return f"{100 * difference.delta:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _accuracies(content: dict[str, Any]) -> Iterator[str]:
    runs, seeds = _runs(content), content["budget"]["seeds"]
    yield "## Test accuracy and training loss"
    rows = []
    for mode, told in MODES.items():
        own = [runs[mode, seed] for seed in seeds if (mode, seed) in runs]
        if own:
            losses = statistics.fmean(run["train_losses"][-1] for run in own)
            cells = [f"{100 * run['accuracy']:.2f} %" for run in own]
            rows.append((told.title, *cells, f"{losses:.4f}", _computed(own[0])))
    yield _markdown(("way", *(f"seed {seed}" for seed in seeds), "loss of the last epoch", "computed with"), rows)


def _computed(run: dict[str, Any]) -> str:
    """How many layers each kernel had, and how many norms were folded."""
    kernels = ", ".join(f"`{name}` {number}" for name, number in run["kernels"].items())
    return f"{kernels}; {run['folded']} norms folded"


def _reproduce(content: dict[str, Any]) -> Iterator[str]:
    yield "## Command and versions"
    yield "```bash\npython experiments/kernels/run.py run --data DIR\npython experiments/kernels/run.py page\n```"
    budget = content["budget"]
    minutes = sum(run["seconds"] for run in content["runs"]) / 60
    yield (
        f"DIR holds `{budget['images']}/train/CLASS/*.png`, the same for `test`, and `{budget['weights']}`. "
        f"{len(content['runs'])} runs took {minutes:.0f} minutes in all, one thread each; seconds are in the JSON file "
        "and are not compared, the machine was doing other work."
    )
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + "."


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
