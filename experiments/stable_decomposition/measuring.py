"""One case of the plan: compress, judge, restore, judge again."""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from plan import RESTORING, Budget
from torch import nn

import convpeft
from convpeft.compression import multiplications
from convpeft.compression.judging import Judge
from convpeft.compression.searching import Layer, Search, largest_rank
from convpeft.data import Split
from convpeft.decompositions.replacing import replace_layer, why_not
from convpeft.fingerprints import fingerprint
from convpeft.models import preprocessing_of, source_of
from convpeft.models.compressed import save_compressed

Accuracy = Callable[[nn.Module], float]


class Remembered:
    """An accuracy that is measured once for equal networks, so that several drops share their trials."""

    def __init__(self, accuracy: Accuracy) -> None:
        self._accuracy, self._known = accuracy, dict[str, float]()

    def __call__(self, model: nn.Module) -> float:
        key = fingerprint(model)[0]
        if key not in self._known:
            self._known[key] = self._accuracy(model)
        return self._known[key]


def measure(
    case: dict[str, Any],
    model: nn.Module,
    accuracy: Accuracy,
    test: Split,
    budget: Budget,
    *,
    classes: int,
    restore_on: Path | None,
    work: Path,
) -> dict[str, Any]:
    """The line of results of one case."""
    began = time.perf_counter()
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    file = work / "thin.safetensors"
    if case["kind"] == "search":
        done = convpeft.compress(
            model,
            accuracy,
            method=case["method"],
            drop=case["setting"],
            candidates=budget.candidates,
            seed=case["seed"],
        )
        thin, facts = done.model, done.to_dict()
        done.save(file)
    else:
        thin, facts = equal_ranks(model, accuracy, case, file)
    searched = time.perf_counter() - began
    shape = (preprocessing.channels, *preprocessing.size)
    judge = Judge(test, preprocessing, classes=classes)
    line = {
        **case,
        "choosing": facts["choosing_accuracy"],
        "parameters": facts["parameters"],
        "multiplications": [sum(multiplications(each, shape).values()) for each in (model, thin)],
        "layers": facts["layers"],
        "trials": facts.get("trials", 1),
        "search_seconds": round(searched, 1),
        "before": packed(judge, model),
        "thin": packed(judge, thin),
        "restored": {},
    }
    if restore_on is not None:
        for method in RESTORING:
            line["restored"][method] = restored(file, method, restore_on, budget, case["seed"], work)
    file.unlink()
    return line


def equal_ranks(model: nn.Module, accuracy: Accuracy, case: dict[str, Any], file: Path) -> tuple[nn.Module, Any]:
    """Every layer with the same share of the largest rank that saves anything: nothing is searched."""
    work = copy.deepcopy(model)
    sites = [site for site in convpeft.select(work, ["conv"]) if not why_not(work.get_submodule(site.path), site)]
    layers = {s.path: Layer(s.path, work.get_submodule(s.path), case["method"], case["seed"]) for s in sites}
    ranks = {path: (max(round(case["setting"] * largest_rank(each, ())), 1),) for path, each in layers.items()}
    ranks = {path: each for path, each in ranks.items() if layers[path].saves(each)}
    search = Search(work, layers, accuracy)
    after = search.measure(ranks)
    sizes = [sum(p.numel() for p in work.parameters())]
    told = [
        {
            "path": path,
            "shape": layers[path].shape,
            "ranks": each,
            "error": found.error,
            "plain_sensitivity": found.plain_sensitivity,
            "sensitivity": found.sensitivity,
            "plain_largest": found.plain_largest,
            "largest": found.largest,
        }
        for path, each in ranks.items()
        for found in [layers[path].decomposed(each)]
    ]
    thin = {path: layers[path].thin(each) for path, each in ranks.items()}
    for path, each in ranks.items():
        replace_layer(work, path, layers[path].built(each))
    sizes.append(sum(p.numel() for p in work.parameters()))
    save_compressed(work, file, thin, source=source_of(model))
    return work, {"choosing_accuracy": [search.base, after], "parameters": sizes, "layers": told}


def restored(file: Path, method: str, images: Path, budget: Budget, seed: int, work: Path) -> dict[str, Any]:
    """Train the compressed network on the restoring images; the epoch is the best on the choosing images."""
    out = work / "run"
    options = {"rank": 4} if method == "lora" else {}
    values = {
        "model": {"source": "compressed", "weights": str(file), "keep_head": True},
        "data": {"source": f"npz:{images}"},
        "method": {"name": method, **options},
        "train": {"epochs": budget.epochs, "batch_size": 64, "seed": seed},
        "out": str(out),
    }
    result = convpeft.train(values)
    shutil.rmtree(out)
    predictions = result.predictions
    right = predictions.probabilities.argmax(1) == predictions.labels
    return {"trained": result.count.trainable, **bits(right)}


def packed(judge: Judge, model: nn.Module) -> dict[str, Any]:
    """Which test images a network gets right."""
    return bits(judge.predictions(model).correct)


def bits(right: Any) -> dict[str, Any]:
    """Accuracy, and a bit for each image."""
    return {"accuracy": float(np.mean(right)), "right": np.packbits(right).tobytes().hex(), "images": len(right)}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
