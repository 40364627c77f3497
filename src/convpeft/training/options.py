"""What can be told of a method and its options at once, before torch is imported: names, ranks, finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from convpeft.catalog import read_catalog
from convpeft.errors import OptionError, nearest
from convpeft.training.recipe import MethodSection, TrainSection

_PLACES = ("include", "exclude")  # that each of several mixed methods may have


def check_method(section: MethodSection) -> None:
    """Refuse a method or option that does not exist, and values that fit no layer; the rest is checked with the model.

    Raises:
        OptionError: Naming the nearest method or option.
    """
    known = {entry.name: entry.options for entry in read_catalog()}
    names = section.name.split("+")
    unknown = [name for name in names if name not in known]
    if unknown and entry_points(group="convpeft.methods"):
        return  # another package may know it
    if unknown:
        raise OptionError(f"method={unknown[0]!r} does not exist. {nearest(unknown[0], known)}")
    for name in names:
        given = section.options if len(names) == 1 else section.options.get(name, {})
        if isinstance(given, Mapping):
            places = () if len(names) == 1 else _PLACES
            _check_options(name, cast(Mapping[str, Any], given), known[name], places)


def check_settings(settings: TrainSection, processes: int) -> None:
    """Refuse settings that exclude each other, or several processes.

    Raises:
        OptionError: Naming them.
    """
    if settings.objective == "lwf" and processes > 1:
        raise OptionError("train.objective='lwf' runs in one process. Start it without torchrun.")
    if settings.autotune and processes > 1:
        raise OptionError("train.autotune=true runs in one process. Tune there first: what it finds is kept on disk.")
    if settings.checkpointing and settings.compile:
        raise OptionError(
            "train.checkpointing and train.compile exclude each other: a compiled network chooses by itself what it "
            "computes again. Leave one of them out."
        )


def _check_options(name: str, given: Mapping[str, Any], known: tuple[str, ...], places: tuple[str, ...]) -> None:
    for key, value in given.items():
        if key not in (*known, *places):
            raise OptionError(f"method {name!r} has no option {key!r}. {nearest(key, known)}")
        if key == "rank" and type(value) is not int:
            raise OptionError(f"method {name!r}: rank={value!r} is not int. Give a whole number, 1 or more.")
        if key == "rank" and value < 1:
            raise OptionError(f"method {name!r}: rank={value} is too small. Give 1 or more.")
        if isinstance(value, float) and not math.isfinite(value):
            raise OptionError(f"method {name!r}: {key}={value} is not finite. Give a number.")
