"""A cell: one recipe of a grid, known by a digest of everything that decides what it comes to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convpeft.training.recipe import Recipe, make_recipe, put_key

_BASES = (2, 3, 5, 7, 11, 13)  # of the digits of a point's coordinates
_LONG = 16  # hexadecimal digits of a digest that are kept


@dataclass(frozen=True)
class Range:
    """What a tuned key may be: numbers between two ends, or one of a few choices."""

    low: float = 0.0
    high: float = 0.0
    log: bool = True
    choices: tuple[Any, ...] = ()

    def at(self, place: float) -> Any:
        """The value at a place in 0..1 of the range."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            return float(f"{math.exp(math.log(self.low) + place * math.log(self.high / self.low)):.3g}")
        return float(f"{self.low + place * (self.high - self.low):.3g}")

    def told(self) -> str:
        """The range in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        return f"{self.low:g} to {self.high:g}, {'logarithmic' if self.log else 'linear'}"


@dataclass(frozen=True)
class Study:
    """The tuning of one arm in one setting: a recipe with the tuning seed, ranges, and the number of trials.

    The points are spread evenly over the ranges (a Hammersley set): the same for every arm, whoever computes them.
    """

    recipe: Recipe
    ranges: dict[str, Range]
    trials: int

    @property
    def key(self) -> str:
        """A digest of everything that decides its outcome."""
        ranges = {name: vars(each) for name, each in self.ranges.items()}
        return digest({"recipe": plain_recipe(self.recipe), "ranges": ranges, "trials": self.trials})

    def point(self, number: int) -> dict[str, Any]:
        """The values of a trial."""
        places = [(number + 0.5) / self.trials, *(_mirrored(number + 1, base) for base in _BASES)]
        return {name: each.at(places[index]) for index, (name, each) in enumerate(self.ranges.items())}

    def trial_key(self, number: int) -> str:
        """What tells a trial from every other."""
        return f"{self.key}-{number}"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        arm: The arm's name with what varies in it, such as "lora, rank 8".
        setting: Shared axes and their values here, without the seed.
        seed: Of this run.
        recipe: Everything but the tuned keys and the directory.
        study: Where the tuned keys come from; None for an arm without any.
    """

    arm: str
    setting: dict[str, Any]
    seed: int
    recipe: Recipe
    study: Study | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        study = None if self.study is None else self.study.key
        object.__setattr__(self, "key", digest({"recipe": plain_recipe(self.recipe), "study": study}))

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return ", ".join([self.arm, *(f"{key} {value}" for key, value in self.setting.items()), f"seed {self.seed}"])


def digest(value: Any) -> str:
    """A short digest of plain values, equal for equal values whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_LONG]


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without its directory."""
    return recipe.model_dump(exclude_none=True, exclude={"out"})


def with_keys(recipe: Recipe, keys: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """A recipe with some keys set, checked again.

    Raises:
        OptionError: If a key or value is none of a recipe.
    """
    values = recipe.model_dump(exclude_none=True, exclude_unset=True)
    for key, value in keys.items():
        put_key(values, key, value)
    return make_recipe(values, where=where)


def _mirrored(number: int, base: int) -> float:
    """The digits of a number, mirrored at the point: 6 = 110 in base 2 becomes 0.011."""
    place, found = 1.0, 0.0
    while number:
        place /= base
        number, figure = divmod(number, base)
        found += place * figure
    return found
