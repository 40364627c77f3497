"""Compress a network: the ranks by search, the thin layers in their places, and what that costs and saves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convpeft.compression.searching import Accuracy, Layer, Search
from convpeft.decompositions.forms import METHODS, Decomposed, Thin
from convpeft.decompositions.replacing import replace_layer, why_not
from convpeft.errors import ModelError, OptionError, nearest
from convpeft.injection import state_of
from convpeft.models import ModelSource, source_of
from convpeft.models.compressed import save_compressed
from convpeft.selection import select

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CompressedLayer:
    """What became of one convolution.

    Args:
        path: Its path.
        shape: Of its kernel, (out, in/groups, *kernel).
        ranks: Of the thin layers; None for a layer that was left alone.
        reason: Why it was left alone.
        alone: The ranks that would do if no other layer were thin.
        found: Error and sensitivities; None for a layer that was left alone.
        parameters: Of kernel and bias before, and after.
    """

    path: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...] | None
    reason: str | None
    alone: tuple[int, ...] | None
    found: Decomposed | None
    parameters: tuple[int, int]


@dataclass(frozen=True)
class Compression:
    """A compressed network and how it came to be.

    Args:
        model: A copy of the network with thin layers in it, an ordinary nn.Module.
        method: `cpd-epc`, `cpd`, `tucker` or `tucker-cpd`.
        drop: The drop in accuracy that was allowed.
        layers: Every convolution, those that were left alone too.
        accuracy: On the images that chose, before and after.
        parameters: Of the whole network, before and after.
        trials: How often the accuracy was measured, for this drop and those before it.
        source: How the base was built, if that is known.
    """

    model: nn.Module
    method: str
    drop: float
    layers: tuple[CompressedLayer, ...]
    accuracy: tuple[float, float]
    parameters: tuple[int, int]
    trials: int
    source: ModelSource | None

    @property
    def thin(self) -> dict[str, Thin]:
        """The thin layers by their paths."""
        return {each.path: Thin(METHODS[self.method], each.ranks) for each in self.layers if each.ranks is not None}

    def save(self, path: str | Path) -> Path:
        """Write the network to a .safetensors file that `convpeft.load_compressed` and `compressed:FILE` read.

        Raises:
            OptionError: If the name has another ending.
            OSError: If it cannot be written.
        """
        return save_compressed(self.model, path, self.thin, source=self.source)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, for a file."""
        layers: list[dict[str, Any]] = []
        for each in self.layers:
            figures = {} if each.found is None else asdict(each.found)
            figures.pop("weights", None)
            plain = {key: getattr(each, key) for key in ("path", "shape", "ranks", "reason", "alone", "parameters")}
            layers.append(plain | figures)
        return {
            "method": self.method,
            "accuracy_drop": self.drop,
            "choosing_accuracy": self.accuracy,
            "parameters": self.parameters,
            "trials": self.trials,
            "layers": layers,
        }


class Compressor:
    """Compresses one network by one method, within one drop after another; what one has tried serves the next.

    First each layer alone: the smallest rank with which the network, all else whole, loses at most the drop, by
    bisection; a layer that has none below the size of its kernel stays. Then all together: each layer alone may lose
    only a share of the drop, the largest with which the network with all of them thin loses at most the drop. Should
    even a share of nothing be too much, all ranks grow by a common step until it does. A layer is decomposed with a
    rank, and the accuracy of the two measured, once for all drops.

    Args:
        model: The network; it is copied.
        accuracy: Measures a network, 0..1, on images that are not those of the final test.
        method: `cpd-epc` (CPD with the error-preserving correction), `cpd` (without it), `tucker` (Tucker-2), or
            `tucker-cpd` (Tucker-2 with a corrected CPD of the core).
        include: Which layers, as in `attach`. Default: all convolutions.
        exclude: Which of them not.
        candidates: Ranks of a layer that are looked at, evenly spread. Default: all.
        seed: Of the decompositions' starts.

    Raises:
        OptionError: If an option is out of range or a pattern names nothing.
        ModelError: If the model carries adapters, or has no layer that can be compressed.
    """

    def __init__(
        self,
        model: nn.Module,
        accuracy: Accuracy,
        *,
        method: str = "cpd-epc",
        include: Sequence[str] | str | None = None,
        exclude: Sequence[str] | str | None = None,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        if method not in METHODS:
            raise OptionError(f"method={method!r} does not exist. {nearest(method, METHODS)}")
        if candidates is not None and candidates < 1:
            raise OptionError(f"candidates={candidates!r} is out of range, it must be at least 1.")
        if state_of(model) is not None:
            raise ModelError("the model carries adapters. Merge them first: convpeft.merge(model).")
        sites = [site for site in select(model, include or ("conv",), exclude) if site.kind == "conv"]
        self._refused = {site.path: why_not(model.get_submodule(site.path), site) for site in sites}
        if all(reason is not None for reason in self._refused.values()):
            found = list(self._refused.items())[:3]
            told = "; ".join(f"{path!r} is {reason}" for path, reason in found) or "it has none"
            raise ModelError(f"no convolution of this model can be compressed ({told}). Include an ordinary one.")
        self._method, self._source = method, source_of(model)
        self._work = copy.deepcopy(model)
        # an adapter on the result must not record the base that it no longer is
        self._work.__dict__.pop("_convpeft_source", None)
        self._layers = {
            path: Layer(path, self._work.get_submodule(path), method, seed)
            for path, reason in self._refused.items()
            if reason is None
        }
        self._search = Search(self._work, self._layers, accuracy, candidates=candidates)

    def within(self, drop: float, *, progress: Progress | None = None) -> Compression:
        """The network with the smallest ranks that lose at most this much accuracy.

        Args:
            drop: Accuracy that may be lost on those images, in [0, 1), before anything is trained again.
            progress: Is told of the layer that was searched, its number, and how many there are.

        Raises:
            OptionError: If the drop is out of range.
        """
        if not 0 <= drop < 1:
            raise OptionError(
                f"drop={drop!r} is out of range, it must be in [0, 1). 0.005 is half a point of accuracy."
            )
        layers, alone = self._layers, dict[str, tuple[int, ...] | None]()
        for number, path in enumerate(layers):
            alone[path] = self._search.alone(path, drop)
            if progress is not None:
                progress(path, number + 1, len(layers) + 1)
        ranks = self._search.together(drop)
        after = self._search.measure(ranks)
        told = tuple(
            _told(self._work.get_submodule(path), path, reason, layers, ranks, alone)
            for path, reason in self._refused.items()
        )
        thin = copy.deepcopy(self._work)
        for path, each in ranks.items():
            replace_layer(thin, path, layers[path].built(each))
        if progress is not None:
            progress("all together", len(layers) + 1, len(layers) + 1)
        sizes = (_size(self._work), _size(thin))
        accuracy = (self._search.base, after)
        return Compression(thin, self._method, drop, told, accuracy, sizes, self._search.trials, self._source)


def compress(
    model: nn.Module,
    accuracy: Accuracy,
    *,
    method: str = "cpd-epc",
    drop: float = 0.005,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    candidates: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compression:
    """Replace convolutions by thin ones, of the smallest ranks that keep the accuracy: `Compressor` for one drop.

    Args:
        model: The network; it is copied.
        accuracy: Measures a network, 0..1, on images that are not those of the final test.
        method: `cpd-epc`, `cpd`, `tucker` or `tucker-cpd`.
        drop: Accuracy that may be lost on those images, in [0, 1), before anything is trained again.
        include: Which layers, as in `attach`. Default: all convolutions.
        exclude: Which of them not.
        candidates: Ranks of a layer that are looked at, evenly spread. Default: all.
        seed: Of the decompositions' starts.
        progress: Is told of the layer that was searched, its number, and how many there are.

    Raises:
        OptionError: If an option is out of range or a pattern names nothing.
        ModelError: If the model carries adapters, or has no layer that can be compressed.
    """
    compressor = Compressor(
        model, accuracy, method=method, include=include, exclude=exclude, candidates=candidates, seed=seed
    )
    return compressor.within(drop, progress=progress)


def _told(
    layer: Any,
    path: str,
    refused: str | None,
    layers: dict[str, Layer],
    ranks: dict[str, tuple[int, ...]],
    alone: dict[str, tuple[int, ...] | None],
) -> CompressedLayer:
    shape, before = tuple(layer.weight.shape), _size(layer)
    if path not in ranks:
        left = "none that is smaller is within the drop" if alone.get(path) is None else "whole again beside the others"
        return CompressedLayer(path, shape, None, refused or left, alone.get(path), None, (before, before))
    after = _size(layers[path].built(ranks[path]))
    found = layers[path].decomposed(ranks[path])
    return CompressedLayer(path, shape, ranks[path], None, alone[path], found, (before, after))


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
