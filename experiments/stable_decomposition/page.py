"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plan import METHODS, RESTORING, cases_of

from convpeft.evaluation import paired_difference, wilson_interval

NAME = "stable_decomposition"
Line = dict[str, Any]


def write_page(content: dict[str, Any], docs: Path) -> None:
    """Write the page and its figures below `docs`; equal results give equal bytes."""
    from figure import draw

    docs.mkdir(parents=True, exist_ok=True)
    figures = draw(content["lines"], docs / NAME)
    blocks = [
        *_head(content),
        *_equal_ranks(content),
        *_searched(content, figures),
        *_missing(content),
        *_reproduce(content),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def right(result: Line) -> np.ndarray:
    """Which images a network got right."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(result["right"]), dtype=np.uint8))
    return bits[: result["images"]].astype(bool)


def _head(content: dict[str, Any]) -> Iterator[str]:
    budget = content["budget"]
    yield "# Stable decompositions for compression"
    yield (
        "Convolutions of trained networks become chains of thin ones, after Phan et al. 2020 (arXiv "
        "2008.05441): plain CPD, "
        "CPD with the error-preserving correction, Tucker-2, and Tucker-2 with a corrected CPD of its core. How "
        "the ranks "
        "are found is in [Compression](../compression.md)."
    )
    yield (
        f"Budget `{content['name']}`: on CIFAR-10, {budget['choosing']:,} images of the training split choose "
        f"the ranks and "
        f"the epoch, {budget['training']:,} others restore ({budget['epochs']} epochs, `full` and `lora` of "
        f"rank 4, no "
        f"augmentation, everything else default), and {budget['testing']:,} of the test split judge; these "
        f"networks were trained on "
        "all of the training split, the choosing images too. "
        f"On ImageNet, {budget['choosing_imagenet']:,} of one half of a sample of 1,000 images, one a class, "
        f"choose, and "
        "the other half judges; the network may have been trained on them. Intervals are Wilson's at 95 %; a "
        "difference has that of a paired bootstrap on the same images."
    )


def _equal_ranks(content: dict[str, Any]) -> Iterator[str]:
    lines = [line for line in content["lines"] if line["kind"] == "equal ranks"]
    if not lines:
        return
    yield "## At equal ranks: what the correction changes"
    yield (
        "Every layer has the same share of the largest rank that saves parameters; nothing is searched. "
        "Sensitivity and the "
        "largest term (its norm over the kernel's) are medians over the layers, and in brackets the largest; "
        "the sensitivity of both "
        "has balanced lengths, so none of the difference is scaling."
    )
    rows = [
        "| network | share | seed | method | error | sensitivity | largest term | thin | restored, full | "
        "restored, lora |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        layers = line["layers"]
        rows.append(
            f"| {line['network']} | {line['setting']:g} | {line['seed']} | `{line['method']}` "
            f"| {statistics.median(each['error'] for each in layers):.3f} "
            f"| {_spread([each['sensitivity'] for each in layers], '.3g')} "
            f"| {_spread([each['largest'] for each in layers], '.3f')} "
            f"| {_accuracy(line['thin'])} | " + " | ".join(_restored(line, method) for method in RESTORING) + " |"
        )
    yield "\n".join(rows)
    yield "\n".join(_differences(lines))


def _differences(lines: Sequence[Line]) -> Iterator[str]:
    """The corrected against the plain CPD, on the same images."""
    found = {(line["network"], line["setting"], line["seed"], line["method"]): line for line in lines}
    for network, share, seed, method in found:
        plain, stable = (found.get((network, share, seed, each)) for each in ("cpd", "cpd-epc"))
        if method != "cpd-epc" or plain is None or stable is None:
            continue
        told: list[str] = []
        for name, one, other in (
            ("thin", stable["thin"], plain["thin"]),
            *((each, stable["restored"].get(each), plain["restored"].get(each)) for each in RESTORING),
        ):
            if one is not None and other is not None:
                each = paired_difference(right(one), right(other), seed=seed)
                told.append(f"{name} {_points(each.delta)} [{_points(each.low)}, {_points(each.high)}]")
        yield f"- {network}, share {share:g}, seed {seed}: corrected less plain CPD, points: {'; '.join(told)}"


def _searched(content: dict[str, Any], figures: Sequence[str]) -> Iterator[str]:
    lines = [line for line in content["lines"] if line["kind"] == "search"]
    if not lines:
        return
    yield "## Ranks by search: operations and parameters against accuracy"
    yield from (f"![{name}]({NAME}/{name}.png)" for name in figures)
    rows = [
        "| network | allowed drop | seed | method | parameters | multiplications | thin layers | before | thin "
        "| full | lora |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in sorted(
        lines, key=lambda each: (each["network"], each["setting"], each["seed"], METHODS.index(each["method"]))
    ):
        thin = sum(each["ranks"] is not None for each in line["layers"])
        rows.append(
            f"| {line['network']} | {100 * line['setting']:g} | {line['seed']} | `{line['method']}` "
            f"| {_ratio(line['parameters'])} | {_ratio(line['multiplications'])} | {thin} | "
            f"{_accuracy(line['before'])} "
            f"| {_accuracy(line['thin'])} | " + " | ".join(_restored(line, method) for method in RESTORING) + " |"
        )
    yield "\n".join(rows)
    yield (
        "The allowed drop is in points, on the choosing images. Parameters and multiplications are those of the "
        "whole "
        "network: the share that is left, and how many times fewer that is. `full` and `lora`: after restoring."
    )


def _missing(content: dict[str, Any]) -> Iterator[str]:
    yield "## Left out"
    held = [{key: line[key] for key in ("kind", "network", "method", "setting", "seed")} for line in content["lines"]]
    missing = [case for case in cases_of(content["budget"]) if case not in held]
    if missing:
        yield f"Of this budget, {len(missing)} of {len(missing) + len(held)} cases are not measured yet."
    yield (
        "VGG-16, ResNet-18 and ResNet-50 on the ImageNet validation set, where the paper reports 5.26, 3.09 and "
        "2.64 times fewer "
        "operations for 0.92, 0.69 and 1.47 points of top-1 accuracy, are not testable here: neither the images "
        "nor the "
        "weights are at hand. With them: `convpeft compress torchvision/resnet18 --data folder:IMAGENET "
        "--accuracy-drop 0.01 "
        "--out resnet18.safetensors`, then `convpeft train --model compressed:resnet18.safetensors --data "
        "folder:IMAGENET "
        "--method full --set model.keep_head=true --out runs/restored`. The paper allows its drop (EPS) to each "
        "layer "
        "alone; here it is allowed to the whole network."
    )


def _reproduce(content: dict[str, Any]) -> Iterator[str]:
    yield "## Reproduce"
    yield (
        "```bash\npython experiments/stable_decomposition/run.py run --data DIR --weights DIR "
        f"--budget {content['name']}\npython experiments/stable_decomposition/run.py page\n```"
    )
    seeds = ", ".join(map(str, content["budget"]["seeds"]))
    digests = "\n".join(f"| {name} | `{digest}` |" for name, digest in sorted(content["digests"].items()))
    yield f"Seeds: {seeds}. SHA-256 of weights files, and of the pixels and labels that were used:"
    yield f"| what | SHA-256 |\n|---|---|\n{digests}"
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(content["versions"].items())) + "."


def _accuracy(result: Line) -> str:
    hits = int(right(result).sum())
    low, high = wilson_interval(hits, result["images"])
    return f"{100 * hits / result['images']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _restored(line: Line, method: str) -> str:
    return _accuracy(line["restored"][method]) if method in line["restored"] else "-"


def _ratio(pair: Sequence[int]) -> str:
    return f"{pair[1] / pair[0]:.1%} ({pair[0] / max(pair[1], 1):.2f}x)"


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({max(values):{form}})"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
