"""One case of the plan: compress, judge, restore, judge again."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common.answers import packed
from images import Images, images_for
from plan import RATES, RESTORING, SEARCH, TUNE, Budget, Case, is_restored
from torch import nn

import convpeft
from convpeft.compression import Compressor, multiplications
from convpeft.compression.judging import Judge
from convpeft.compression.searching import Layer, Search, largest_rank
from convpeft.decompositions.replacing import replace_layer, why_not
from convpeft.errors import RunError
from convpeft.models import preprocessing_of, source_of
from convpeft.models.compressed import save_compressed
from convpeft.training.runs import as_recipe, open_run, run_prepared

_LAYER = ("path", "shape", "ranks", "error", "plain_sensitivity", "sensitivity", "plain_largest", "largest")


class Bench:
    """Networks, images and searches, as long as the cases that follow each other need them.

    Args:
        budget: How much is measured.
        root: Folder of the data; None where it is generated.
        weights: File of weights of each network.
        work: Folder for what has to lie on disk.
    """

    def __init__(self, budget: Budget, root: Path | None, weights: Mapping[str, Path], work: Path) -> None:
        self.budget, self._root, self._weights, self._work = budget, root, weights, work
        self._ready: dict[tuple[str, int], tuple[nn.Module, Images, Judge, Judge]] = {}
        self._before: dict[tuple[str, int], dict[str, Any]] = {}
        self._search: tuple[tuple[Any, ...], Compressor] | None = None

    def images(self, case: Case) -> Images:
        """What the case sees."""
        return self._prepared(case)[1]

    def measure(self, case: Case, rates: Mapping[str, float]) -> dict[str, Any]:
        """The line of results of one case, restored with the rates that were chosen, or with all to choose by."""
        began = time.perf_counter()
        model, images, choosing, test = self._prepared(case)
        file = self._work / "thin.safetensors"
        thin, facts = (self._searched if case["kind"] == SEARCH else self._equal)(case, model, choosing, file)
        searched = time.perf_counter() - began
        preprocessing = preprocessing_of(model)
        assert preprocessing is not None
        shape = (preprocessing.channels, *preprocessing.size)
        line = {
            **case,
            **facts,
            "multiplications": [sum(multiplications(each, shape).values()) for each in (model, thin)],
            "before": self._before[case["network"], case["seed"]],
            "thin": bits(test.predictions(thin).correct),
            "search_seconds": round(searched, 1),
        }
        if case["kind"] == TUNE:
            line["tried"] = [self._restored(file, arm, rate, case) for arm in RESTORING for rate in RATES]
        elif images.restore_on is not None and is_restored(self.budget, case):
            line["restored"] = [self._restored(file, arm, rates[arm], case) for arm in RESTORING]
        file.unlink()
        return line | {"seconds": round(time.perf_counter() - began, 1)}

    def _prepared(self, case: Case) -> tuple[nn.Module, Images, Judge, Judge]:
        key = network, seed = case["network"], case["seed"]
        if key not in self._ready:
            model = convpeft.load_model(network, weights=self._weights[network]).eval()
            images = images_for(network, self._root, self.budget, seed, self._work)
            preprocessing = preprocessing_of(model)
            assert preprocessing is not None
            judges = [Judge(each, preprocessing, classes=images.classes) for each in (images.choosing, images.test)]
            self._ready[key] = (model, images, judges[0], judges[1])
            self._before[key] = bits(judges[1].predictions(model).correct)
        return self._ready[key]

    def _searched(self, case: Case, model: nn.Module, choosing: Judge, file: Path) -> tuple[nn.Module, dict[str, Any]]:
        key = (case["network"], case["method"], case["seed"])
        if self._search is None or self._search[0] != key:
            options = {"method": case["method"], "candidates": self.budget.candidates, "seed": case["seed"]}
            self._search = (key, Compressor(model, choosing.accuracy, **options))
        done = self._search[1].within(case["setting"])
        done.save(file)
        facts = done.to_dict()
        layers = [_rounded({name: each.get(name) for name in _LAYER}) for each in facts["layers"]]
        kept = {"choosing": facts["choosing_accuracy"], "parameters": facts["parameters"], "trials": facts["trials"]}
        return done.model, kept | {"layers": layers}

    def _equal(self, case: Case, model: nn.Module, choosing: Judge, file: Path) -> tuple[nn.Module, dict[str, Any]]:
        """Every layer with the same share of the largest rank that saves anything: nothing is searched."""
        work = copy.deepcopy(model)
        sites = [site for site in convpeft.select(work, ["conv"]) if not why_not(work.get_submodule(site.path), site)]
        layers = {s.path: Layer(s.path, work.get_submodule(s.path), case["method"], case["seed"]) for s in sites}
        ranks = {path: (max(round(case["setting"] * largest_rank(each, ())), 1),) for path, each in layers.items()}
        ranks = {path: each for path, each in ranks.items() if layers[path].saves(each)}
        search = Search(work, layers, choosing.accuracy)
        after = search.measure(ranks)
        sizes = [sum(p.numel() for p in work.parameters())]
        found = {path: layers[path].decomposed(each) for path, each in ranks.items()}
        told = [
            _rounded({"path": path, "shape": layers[path].shape, "ranks": each})
            | _rounded({name: getattr(found[path], name) for name in _LAYER[3:]})
            for path, each in ranks.items()
        ]
        thin = {path: layers[path].thin(each) for path, each in ranks.items()}
        for path, each in ranks.items():
            replace_layer(work, path, layers[path].built(each))
        sizes.append(sum(p.numel() for p in work.parameters()))
        save_compressed(work, file, thin, source=source_of(model))
        return work, {"choosing": [search.base, after], "parameters": sizes, "trials": search.trials, "layers": told}

    def _restored(self, file: Path, arm: str, rate: float, case: Case) -> dict[str, Any]:
        """Train the thin network on the restoring images; the epoch is the best on the choosing images."""
        _, images, _, test = self._prepared(case)
        out = self._work / "run"
        recipe = as_recipe(
            {
                "model": {"source": "compressed", "weights": str(file), "keep_head": True},
                "data": {"source": f"npz:{images.restore_on}"},
                "method": dict(RESTORING[arm]),
                "train": {"epochs": self.budget.epochs, "batch_size": 64, "lr": rate, "seed": case["seed"]},
                "out": str(out),
            }
        )
        try:
            with open_run(recipe) as prepared:
                result = run_prepared(prepared, out, resume=False, watcher=None)
        except RunError as error:
            return {
                "arm": arm,
                "rate": rate,
                "val_accuracy": 0.0,
                "val_loss": None,
                "broke": str(error).split(": ")[-1],
            }
        finally:
            shutil.rmtree(out, ignore_errors=True)
        best = result.fit.best
        return {
            "arm": arm,
            "rate": rate,
            "trained": result.count.trainable,
            "val_accuracy": round(best.val_accuracy, 6),
            "val_loss": round(best.val_loss, 6),
            **bits(test.predictions(result.model).correct),
        }


def bits(right: Any) -> dict[str, Any]:
    """Accuracy, and a bit for each image."""
    return {"accuracy": float(np.mean(right)), "right": packed(right), "images": len(right)}


def _rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Six digits of each number are kept, and nothing that is not known."""
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in facts.items()
        if value is not None
    }
