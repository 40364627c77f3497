"""What a model card tells: the adapter's own description, and the figures of the run that made it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convpeft.adapter_file import CONFIG, AdapterFile, read_adapter
from convpeft.errors import RunError, one_line
from convpeft.evaluation import wilson_interval
from convpeft.training.recipe import Recipe, make_recipe, read_recipe

_LARGEST = 64 * 2**20  # bytes of a metrics.json
_MOST_CLASSES = 1000  # of a confusion matrix
_DRAWS, _FEWEST = 2000, 200  # matrices that are drawn
_WORK, _AT_ONCE = 10_000_000, 1_000_000  # numbers in all of them, and in those that are in memory together

Estimate = tuple[float, tuple[float, float]]  # a value and its 95 % interval


@dataclass(frozen=True, eq=False)
class TestFigures:
    """Figures on the test split, all worked out from its confusion matrix.

    Args:
        classes: Class names, K of them.
        confusion: Images by true (row) and predicted (column) class, (K, K).
    """

    __test__ = False  # pytest takes a name that begins with Test for a test

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def n(self) -> int:
        """Test images."""
        return int(self.confusion.sum())

    def summary(self) -> dict[str, Estimate]:
        """Accuracy, mean sensitivity and mean F1, the means over the classes that have test images.

        The interval of the accuracy is Wilson's. Those of the means hold 95 % of what is left when the true shares of
        the matrix are drawn from their Dirichlet posterior; a bootstrap without a mistake in it would be sure of 100 %.
        """
        balanced, f1 = _means(self.confusion)
        low, high = np.quantile(np.concatenate(list(self._possible())), (0.025, 0.975), axis=0)
        return {
            "accuracy": _proportion(int(np.trace(self.confusion)), self.n),
            "balanced accuracy": _around(balanced, low[0], high[0]),
            "macro F1": _around(f1, low[1], high[1]),
        }

    def _possible(self) -> Iterator[NDArray[np.float64]]:
        """Both means, in rows, of matrices that the images might have given with as many of each class.

        All classes together share a prior of half an image that is right and half a one that is wrong.
        """
        size, rng = len(self.classes), np.random.default_rng(0)
        prior = np.where(np.eye(size, dtype=bool), 0.5 / size, 0.5 / size / max(1, size - 1))
        totals = self.confusion.sum(axis=1, keepdims=True)
        left, at_once = max(_FEWEST, min(_DRAWS, _WORK // size**2)), max(1, _AT_ONCE // size**2)
        while left > 0:
            shares = rng.standard_gamma(self.confusion + prior, size=(min(left, at_once), size, size))
            yield _means(totals * shares / shares.sum(axis=2, keepdims=True).clip(1e-300))
            left -= at_once

    def sensitivities(self) -> list[tuple[str, int, Estimate]]:
        """Each class that has test images: its name, their number, and the share of them that is found."""
        sizes = self.confusion.sum(axis=1)
        return [
            (name, int(sizes[k]), _proportion(int(self.confusion[k, k]), int(sizes[k])))
            for k, name in enumerate(self.classes)
            if sizes[k]
        ]


@dataclass(frozen=True)
class CardFacts:
    """Everything that goes into a card.

    Args:
        file: The adapter.
        recipe: Of the run, None for an adapter without one.
        figures: On the run's test split, the same.
        command: What was typed to make the run.
        notes: What the run told of data and model.
        images: Images of each split.
        trainable: Parameters that were trained, and those of the base.
        duplicates: Images that occur in more than one split.
    """

    file: AdapterFile
    recipe: Recipe | None = None
    figures: TestFigures | None = None
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    images: tuple[tuple[str, int], ...] = ()
    trainable: tuple[int, int] | None = None
    duplicates: int = 0


def read_facts(path: Path) -> CardFacts:
    """Read an adapter, and what the run around it has left.

    Raises:
        AdapterFileError: If there is no adapter or it is damaged.
        OptionError: If the run's recipe is.
        RunError: If the run's metrics.json is damaged or of another adapter.
    """
    file = read_adapter(path)
    metrics, recipe = path / "metrics.json", path / "recipe.toml"
    if (path / CONFIG).is_file() or not metrics.is_file():  # an adapter by itself
        return CardFacts(file)
    try:
        if metrics.stat().st_size > _LARGEST:
            raise ValueError(f"{metrics.stat().st_size} bytes are too many")
        facts = _checked(json.loads(metrics.read_text(encoding="utf-8")), file)
    except (OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise RunError(
            f"{metrics}: is no readable record of this run ({one_line(error, 160)}). Give the adapter's folder "
            "instead, without figures."
        ) from None
    made = make_recipe(read_recipe(recipe), where=str(recipe)) if recipe.is_file() else None
    return CardFacts(file, made, **facts)


def _proportion(successes: int, n: int) -> Estimate:
    return successes / n, wilson_interval(successes, n)


def _around(value: float, low: float, high: float) -> Estimate:
    return float(value), (min(float(value), float(low)), max(float(value), float(high)))


def _means(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Mean sensitivity and mean F1 over the classes that have images; of one matrix (K, K) or several (N, K, K)."""
    right, true, called = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2)
    present = true > 0
    sensitivity = np.divide(right, true, where=present, out=np.zeros(true.shape))
    f1 = np.divide(2 * right, true + called, where=present, out=np.zeros(true.shape))
    return np.stack([sensitivity.sum(axis=-1), f1.sum(axis=-1)], axis=-1) / present.sum(axis=-1)[..., None]


def _checked(found: object, file: AdapterFile) -> dict[str, Any]:
    """The fields that a card has use for, each of the type it should have."""
    facts = _table(found, "the file")
    test, sizes = _table(facts.get("test"), "test"), _table(facts.get("parameters"), "parameters")
    classes = _words(test.get("classes"), "test.classes")
    if file.config["classes"] is not None and list(classes) != file.config["classes"]:
        raise ValueError("its classes are not those of the adapter")
    matrix = test.get("confusion")
    size = len(classes)
    if not 0 < size <= _MOST_CLASSES or not isinstance(matrix, list) or len(cast(list[Any], matrix)) != size:
        raise ValueError("field 'test.confusion' has not a row for each class")
    for row in cast(list[Any], matrix):
        if not isinstance(row, list) or len(cast(list[Any], row)) != size or not all(map(_is_count, cast(Any, row))):
            raise ValueError("field 'test.confusion' holds a row that is no list of counts")
    figures = TestFigures(classes, np.array(matrix, dtype=np.int64))
    images = _table(facts.get("images"), "images")
    duplicates = facts.get("duplicates_across_splits", 0)
    counts = [duplicates, *images.values(), sizes.get("trainable"), sizes.get("base")]
    if not figures.n or not all(map(_is_count, counts)):
        raise ValueError("field 'images', 'parameters', 'duplicates_across_splits' or 'test.confusion' holds no counts")
    return {
        "figures": figures,
        "command": _words(facts.get("command"), "command"),
        "notes": _words(facts.get("notes"), "notes"),
        "images": tuple(images.items()),
        "trainable": (sizes["trainable"], sizes["base"]),
        "duplicates": duplicates,
    }


def _table(found: object, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no table")
    return cast(dict[str, Any], found)


def _words(found: object, name: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in cast(list[Any], found)):
        raise ValueError(f"field {name!r} is no list of strings")
    return tuple(cast(list[str], found))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
