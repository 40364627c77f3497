"""Search the smallest ranks: of each layer alone by bisection, then of all together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.decompositions.forms import METHODS, Decomposed, Thin, decompose, size_of
from convpeft.decompositions.replacing import replace_layer, thin_layers

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0)  # of the allowed drop, for each layer alone
JOINT_STEPS = 16  # widths between the ranks of the layers alone and the whole layers


@dataclass
class Layer:
    """One convolution that is searched.

    Args:
        path: Its path.
        layer: The convolution.
        method: How its kernel is decomposed.
        seed: Of the decompositions.
    """

    path: str
    layer: nn.Module
    method: str
    seed: int = 0

    def __post_init__(self) -> None:
        """Nothing is decomposed yet."""
        self._known: dict[tuple[int, ...], Decomposed] = {}

    @property
    def weight(self) -> Tensor:
        """The kernel, (out, in, *kernel)."""
        return cast(Tensor, self.layer.weight)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return tuple(self.weight.shape)

    def thin(self, ranks: tuple[int, ...]) -> Thin:
        """The form of this layer with these ranks."""
        return Thin(METHODS[self.method], ranks)

    def saves(self, ranks: tuple[int, ...]) -> bool:
        """Whether the thin layers hold fewer numbers than the kernel."""
        return size_of(self.shape, self.thin(ranks)) < self.weight.numel()

    def decomposed(self, ranks: tuple[int, ...]) -> Decomposed:
        """The decomposition of these ranks, computed once."""
        if ranks not in self._known:
            self._known[ranks] = decompose(self.weight, self.method, ranks, seed=self.seed)
        return self._known[ranks]

    def built(self, ranks: tuple[int, ...]) -> nn.Sequential:
        """The thin layers."""
        with torch.random.fork_rng(devices=[]):
            return thin_layers(self.layer, self.thin(ranks), self.decomposed(ranks).weights)


Accuracy = Callable[[nn.Module], float]
Ranks = Mapping[str, tuple[int, ...]]


def smallest(passes: Callable[[int], bool], most: int, *, candidates: int | None = None) -> int | None:
    """The smallest number from 1 to `most` that passes, by bisection; None where `most` does not.

    Right where every number above one that passes does so too. Accuracy on few images is not quite so: then the
    number passes all the same, but a smaller one might too.

    Args:
        passes: Is asked about log2(most) + 1 numbers.
        most: The largest number.
        candidates: Look at so many numbers, evenly spread up to `most`. Default: at all.

    >>> smallest(lambda n: n >= 37, 100), smallest(lambda n: n >= 37, 100, candidates=10)
    (37, 40)
    """
    count = min(most, candidates or most)
    numbers = [math.ceil(most * (number + 1) / count) for number in range(count)]
    if not numbers or not passes(numbers[-1]):
        return None
    low, high = -1, len(numbers) - 1  # numbers[low] fails, numbers[high] passes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(numbers[middle]) else (middle, high)
    return numbers[high]


class Search:
    """A network, its layers, and the accuracy of what becomes of it; the network is as before after each trial."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], accuracy: Accuracy, *, candidates: int | None = None
    ) -> None:
        self._model, self._layers = model, layers
        self._accuracy, self._candidates = accuracy, candidates
        self._known: dict[tuple[str, str, tuple[int, ...]], float] = {}
        self._together: dict[frozenset[tuple[str, tuple[int, ...]]], float] = {}
        self.trials = 0
        self.base = self.measure({})

    def measure(self, ranks: Ranks) -> float:
        """Accuracy with these layers thin, measured once."""
        key = frozenset(ranks.items())
        if key not in self._together:
            self._together[key] = self._measure({path: self._layers[path].built(each) for path, each in ranks.items()})
        return self._together[key]

    def alone(self, path: str, drop: float) -> tuple[int, ...] | None:
        """The smallest ranks of one layer within the drop, all else whole; None where none saves parameters.

        `tucker-cpd` has two searches: the Tucker ranks within half of the drop, then the terms of the core.
        """
        layer = self._layers[path]
        out, into = layer.shape[:2]

        def search(ranks_of: Callable[[int], tuple[int, ...]], most: int) -> tuple[int, ...] | None:
            found = smallest(lambda n: self._holds(layer, ranks_of(n), drop), most, candidates=self._candidates)
            return None if found is None else ranks_of(found)

        if layer.method == "tucker":
            return search(lambda n: tucker_ranks(out, into, n), largest_width(layer))
        if layer.method != "tucker-cpd":
            return search(lambda n: (n,), largest_rank(layer, ()))
        bases = dataclasses.replace(layer, method="tucker")
        width = smallest(
            lambda n: self._holds(bases, tucker_ranks(out, into, n), drop / 2),
            max(out, into) - 1,
            candidates=self._candidates,
        )
        pair = (out, into) if width is None else tucker_ranks(out, into, width)
        return search(lambda n: (*pair, n), largest_rank(layer, pair))

    def together(self, drop: float) -> dict[str, tuple[int, ...]]:
        """The ranks of all layers with which the whole network is within the drop.

        Each layer alone may lose a share of the drop: all of it, a half, a quarter, an eighth, nothing. The largest
        share that keeps the whole network within the drop is found by bisection. Where none does, all ranks of the
        last one grow by a common step: step s of 16 takes each s/16 of the way to where the layer saves nothing, and
        stays whole. The smallest step is found by bisection too; the last is the network as it was.
        """

        def shared(number: int) -> dict[str, tuple[int, ...]]:  # numbers start at one
            found = {path: self.alone(path, SHARES[number - 1] * drop) for path in self._layers}
            return {path: ranks for path, ranks in found.items() if ranks is not None}

        def widened(number: int) -> dict[str, tuple[int, ...]]:
            share, start = (number - 1) / JOINT_STEPS, shared(len(SHARES))
            found = {path: widen(self._layers[path], ranks, share) for path, ranks in start.items()}
            return {path: ranks for path, ranks in found.items() if ranks is not None}

        def fits(ranks: Ranks) -> bool:
            return not ranks or self.measure(ranks) >= self.base - drop

        level = smallest(lambda n: fits(shared(n)), len(SHARES))
        if level is not None:
            return shared(level)
        return widened(smallest(lambda n: fits(widened(n)), JOINT_STEPS + 1) or JOINT_STEPS + 1)

    def _holds(self, layer: Layer, ranks: tuple[int, ...], drop: float) -> bool:
        key = (layer.path, layer.method, ranks)
        if key not in self._known:
            self._known[key] = self._measure({layer.path: layer.built(ranks)})
        return self._known[key] >= self.base - drop

    def _measure(self, thin: Mapping[str, nn.Module]) -> float:
        self.trials += 1
        replaced: list[tuple[str, nn.Module]] = []
        try:
            for path, new in thin.items():
                replaced.append((path, replace_layer(self._model, path, new)))
            return self._accuracy(self._model)
        finally:
            for path, old in replaced:
                replace_layer(self._model, path, old)


def widen(layer: Layer, ranks: tuple[int, ...], share: float) -> tuple[int, ...] | None:
    """Ranks that share of the way to those which save nothing; None where the layer had better stay whole."""
    if share >= 1:
        return None
    *bases, last = ranks
    if len(ranks) == 2:
        pair = tuple(
            rank + math.floor(share * (most - rank)) for rank, most in zip(ranks, layer.shape[:2], strict=True)
        )
        return pair if layer.saves(pair) else None
    pair = tuple(rank + math.floor(share * (most - rank)) for rank, most in zip(bases, layer.shape, strict=False))
    terms = last + math.floor(share * max(largest_rank(layer, pair) + 1 - last, 0))
    return (*pair, terms) if layer.saves((*pair, terms)) else None


def tucker_ranks(out: int, into: int, width: int) -> tuple[int, int]:
    """Both Tucker ranks by one number: the same share of the output and of the input channels.

    >>> tucker_ranks(64, 16, 32)
    (32, 8)
    """
    share = width / max(out, into)
    return math.ceil(share * out), math.ceil(share * into)


def largest_rank(layer: Layer, bases: tuple[int, ...]) -> int:
    """The largest number of terms that saves parameters beside these bases; 0 where none does."""
    fixed, one = (size_of(layer.shape, layer.thin((*bases, terms))) for terms in (0, 1))
    return max((layer.weight.numel() - 1 - fixed) // (one - fixed), 0)


def largest_width(layer: Layer) -> int:
    """The largest Tucker width that saves parameters; 0 where none does."""
    out, into = layer.shape[:2]
    widths: Any = range(max(out, into), 0, -1)
    return next((width for width in widths if layer.saves(tucker_ranks(out, into, width))), 0)
