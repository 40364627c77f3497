"""The map of methods: what each changes, how much of ResNet-50 it trains, and whether it merges; from the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convpeft.adapters import Additive, Branch, Module
from convpeft.low_rank import LowRank
from convpeft.reporting.canvas import BLUE, GRID, INK, ORANGE, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHT, SMALL, PRODUCT = "the weight itself", "bias, scale and shift", "W + product of two matrices"
SUM, MAP, BESIDE = "W + another small tensor", "another map of W", "beside a layer or block"
ORDER = (WEIGHT, SMALL, PRODUCT, SUM, MAP, BESIDE)
_MARKS = {
    "always": (BLUE, BLUE, "merges"),
    "eval": ("white", BLUE, "merges in evaluation"),
    "never": ("white", ORANGE, "stays beside"),
}
_FIRST, _LETTER = 1.55, 1.105  # by how much x grows over a mark and its gap, and over each letter of a label


def place_of(cls: type[Module]) -> str:
    """What a method changes, as its class says."""
    if issubclass(cls, Branch):
        return BESIDE
    if cls.replaces:
        return WEIGHT
    if not cls.maps_weight or "norm" in cls.kinds:
        return SMALL
    if issubclass(cls, LowRank) and cls.is_product:
        return PRODUCT
    return SUM if issubclass(cls, Additive) and cls.additive else MAP


def draw_map(methods: Mapping[str, type[Module]], sizes: Mapping[str, int]) -> Figure:
    """One lane for each thing that is changed; the farther to the right, the more is trained.

    Args:
        methods: Class by name.
        sizes: Trained numbers by name.
    """
    figure = new_figure(9.2, 6.4)
    axes = figure.subplots()
    style_axes(axes, x="numbers trained on ResNet-50 with its own head, default options", grid=False)
    axes.set_xscale("log")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    floor, middles = 0, list[float]()
    for place in reversed(ORDER):
        names = sorted((name for name, cls in methods.items() if place_of(cls) == place), key=sizes.__getitem__)
        levels = _levels([(sizes[name], len(name)) for name in names])
        for name, level in zip(names, levels, strict=True):
            fill, edge, _ = _MARKS[methods[name].mergeable]
            height = floor + 1 + level
            axes.plot([sizes[name]], [height], "o", markersize=6, color=fill, markeredgecolor=edge, markeredgewidth=1.4)
            axes.annotate(
                name, (sizes[name], height), (7, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
            )
        ceiling = floor + 2 + max(levels, default=0)
        middles.append((floor + ceiling) / 2)
        axes.axhline(ceiling, color=GRID, linewidth=0.8)
        floor = ceiling
    axes.set_yticks(middles, list(reversed(ORDER)))
    axes.set_ylim(0, floor)
    axes.set_xlim(min(sizes.values()) / 1.6, max(sizes.values()) * 3)
    for fill, edge, text in _MARKS.values():
        axes.plot([], [], "o", markersize=6, color=fill, markeredgecolor=edge, markeredgewidth=1.4, label=text)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8.5, labelcolor=SOFT)
    return figure


def _levels(points: list[tuple[int, int]]) -> list[int]:
    """Height of each label, from the smallest number on, so that none covers another.

    Args:
        points: Number and letters of the label.
    """
    ends: list[float] = []  # where the last label of each level ends
    levels: list[int] = []
    for number, letters in points:
        level = next((index for index, end in enumerate(ends) if number > end), len(ends))
        ends[level : level + 1] = [number * _FIRST * _LETTER**letters]
        levels.append(level)
    return levels
