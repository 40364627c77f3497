"""Time base, merged, patchable and eight-bit files in onnxruntime, in turn; write latency.json and its page.

python benchmarks/deployment/latency.py                   # ten minutes of a quiet machine
python benchmarks/deployment/latency.py --fast --out DIR  # does everything work? The numbers mean nothing
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import page
import torch

import convpeft
from convpeft.deployment.graphs import INPUT, session_of
from convpeft.deployment.onnx_base import bare_base, export_base
from convpeft.deployment.onnx_merged import describe, export_onnx
from convpeft.deployment.quantizing import quantize_onnx
from convpeft.evaluation.inference import Classifier
from convpeft.models import preprocessing_of

NETWORKS = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
)


WARM_UP = 3  # rounds that do not count
SETS = 9  # of sessions, for each network
PAIRS = (("base", "merged"), ("patchable", "int8"))


def files_of(source: str, folder: Path) -> dict[str, Path]:
    """The four files of one network with a perturbed adapter."""
    torch.manual_seed(0)
    model = convpeft.attach(convpeft.load_model(source, pretrained=False), "lora", rank=8).eval()
    with torch.no_grad():
        for each in convpeft.trainable_parameters(model):
            each.add_(0.01 * torch.randn_like(each))
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    images = torch.randn(8, 3, *preprocessing.size)
    made = {name: folder / f"{name}.onnx" for name in ("base", "merged", "patchable", "int8")}
    with torch.no_grad():
        outputs = model(images).shape[1]
    classifier = Classifier(model, dataclasses.replace(preprocessing), tuple(map(str, range(outputs))))
    base = dataclasses.replace(classifier, model=bare_base(model))  # exported alike, or the ratio tells of the exporter
    export_onnx(base, made["base"], images=images)
    export_base(model, made["patchable"], images=images)
    export_onnx(classifier, made["merged"], images=images)
    quantize_onnx(made["merged"], made["int8"], images.split(4), metadata=describe(classifier, "int8"))
    return made


def measure(source: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of one image in each file, taken in turn, and the files' sizes.

    Where a session's memory happens to lie may make it slower or faster as long as it lives, so several are opened for
    each file, one set after the other. Two files take turns as a b b a a b b a: each is as often behind itself and
    behind the other, whose weights push its own out of the caches.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = files_of(source, Path(folder))
        sizes = {f"{name}_bytes": file.stat().st_size for name, file in made.items()}
        taken: dict[str, list[float]] = {name: [] for name in made}
        ratios: list[float] = []  # of each set of sessions, the median over its rounds
        for number in range(SETS):
            found: dict[str, list[float]] = {}
            for pair in PAIRS:
                names = pair[:: 1 if number % 2 else -1]
                found |= _take_turns(
                    {name: session_of(made[name], threads=1) for name in names}, max(2, rounds // SETS)
                )
            for name, values in found.items():
                taken[name] += values
            ratios.append(float(np.median(np.array(found["merged"]) / np.array(found["base"]))))
    times = {f"{name}_ms": float(np.median(values)) for name, values in taken.items()}
    ratio = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return {"network": source.partition("/")[2], **times, "ratio": ratio, **sizes}


def _take_turns(sessions: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run of each session, by rounds; a run before it brings the weights back into the caches."""
    first = next(iter(sessions.values()))
    side = [each if isinstance(each, int) else 1 for each in first.get_inputs()[0].shape]
    image = {INPUT: np.random.default_rng(0).standard_normal(side, dtype=np.float32)}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + WARM_UP):
        for name in list(sessions)[:: 1 if turn % 2 else -1]:
            sessions[name].run(None, image)
            began = time.perf_counter()
            sessions[name].run(None, image)
            if turn >= WARM_UP:
                taken[name].append(1000 * (time.perf_counter() - began))
    return taken


def main() -> None:
    """Measure all networks and write the JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--fast", action="store_true", help="one small network, two rounds")
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="of the page and the folder of its figures")
    told = parser.parse_args()
    rounds, networks = (2, NETWORKS[2:3]) if told.fast else (told.rounds, NETWORKS)
    rows: list[dict[str, Any]] = []
    for source in networks:
        print(source, flush=True)
        rows.append(measure(source, rounds))
    facts = {
        "trial": told.fast,
        "rounds": rounds,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "networks": rows,
    }
    folder = told.out / "deployment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latency.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    page.write_page(told.out, folder)
    slow = page.slower(facts)
    sys.exit(f"merged is slower than the base by more than 3 %: {', '.join(slow)}" if slow and not told.fast else 0)


if __name__ == "__main__":
    main()
