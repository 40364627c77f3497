"""How much of a classifier's accuracy is left on corrupted images.

mCA is the mean of the accuracies over corruptions and severities, every one alike, and 1 - mCA the mean corruption
error as AugMix and the users of CIFAR-10-C report it: no reference network divides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convpeft.data.corruptions.names import COMMON, EXTRA, RAIN
from convpeft.errors import OptionError
from convpeft.evaluation.statistics import bootstrap_interval, wilson_interval

_RESAMPLES = 2000
MEASURES = {"mca_15": COMMON, "mca_19": (*COMMON, *EXTRA), RAIN: (RAIN,)}


@dataclass(frozen=True)
class MeanAccuracy:
    """A mean accuracy over corruptions and severities; its 95 % interval is over images (percentile bootstrap)."""

    accuracy: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the error beside the accuracy."""
        return {"accuracy": self.accuracy, "error": 1 - self.accuracy, "interval": list(self.interval)}


@dataclass(frozen=True)
class PairedMeans:
    """How much higher the mean accuracy of `a` is than that of `b` over the same corrupted images.

    Attributes:
        delta: Mean accuracy of `a` minus that of `b`, in -1..1.
        interval: Its 95 % interval, from resampling images in pairs.
        n: Number of images.
    """

    delta: float
    interval: tuple[float, float]
    n: int

    def describe(self, a: str, b: str, over: str) -> str:
        """The difference in a sentence that says when it is within noise."""
        low, high = (100 * end for end in self.interval)
        facts = f"{over}; 95 % interval {low:.2f} to {high:.2f}"
        points = f"{100 * abs(self.delta):.2f} points"
        if self.interval[0] <= 0 <= self.interval[1]:
            return f"{a} and {b} differ by {points} ({facts}): within the noise of {self.n:,} images."
        word = "more" if self.delta > 0 else "less"
        return f"{a} is {points} {word} accurate than {b} ({facts}, paired over {self.n:,} images)."


@dataclass(frozen=True, eq=False)
class Robustness:
    """Which corrupted images were classified right.

    Attributes:
        names: Corruptions, C of them.
        severities: S of 1 to 5.
        correct: (C, S, N) booleans; N are the same images each time.
        clean: The same for the images as they are, (M,), or None where they are not known.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...]
    correct: NDArray[np.bool_]
    clean: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        wanted = (len(self.names), len(self.severities))
        if self.correct.ndim != 3 or self.correct.shape[:2] != wanted or 0 in self.correct.shape:
            raise OptionError(
                f"Robustness: expected right and wrong of shape {(*wanted, 'images')}, got {self.correct.shape}. "
                "Pass one row for each corruption and severity."
            )

    @property
    def n(self) -> int:
        """Images of one severity of one corruption."""
        return self.correct.shape[2]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Share of right answers, (C, S)."""
        return self.correct.mean(axis=2)

    @property
    def clean_accuracy(self) -> MeanAccuracy | None:
        """On the images as they are, with Wilson's interval."""
        if self.clean is None:
            return None
        right, n = int(self.clean.sum()), len(self.clean)
        return MeanAccuracy(right / n, wilson_interval(right, n))

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of these corruptions were measured, and there is one."""
        return len(names) > 0 and set(names) <= set(self.names)

    def mean(self, names: Sequence[str] | None = None) -> MeanAccuracy:
        """The mean over these corruptions, or all, and all severities.

        Raises:
            OptionError: If one was not measured.
        """
        shares = self._by_image(self.names if names is None else names)
        return MeanAccuracy(float(shares.mean()), bootstrap_interval(shares, seed=0, resamples=_RESAMPLES))

    def minus(self, other: Robustness, names: Sequence[str] | None = None) -> PairedMeans:
        """This one's mean accuracy minus another's, image by image.

        Raises:
            OptionError: If the two were not measured on the same.
        """
        if (self.names, self.severities, self.n) != (other.names, other.severities, other.n):
            raise OptionError(
                "Robustness.minus: expected two of the same corruptions, severities and images, got "
                f"{len(self.names)} x {len(self.severities)} x {self.n:,} and "
                f"{len(other.names)} x {len(other.severities)} x {other.n:,}. Measure both alike."
            )
        chosen = self.names if names is None else names
        shares = self._by_image(chosen) - other._by_image(chosen)
        return PairedMeans(float(shares.mean()), bootstrap_interval(shares, seed=0, resamples=_RESAMPLES), n=self.n)

    def _by_image(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Of each image the share of its corrupted forms that were classified right, (N,)."""
        if not self.has(names):
            missing = sorted(set(names) - set(self.names))
            raise OptionError(f"Robustness: {', '.join(missing) or 'nothing'} was not measured. Measure it first.")
        rows = [self.names.index(name) for name in names]
        return self.correct[rows].mean(axis=(0, 1))

    def to_dict(self) -> dict[str, Any]:
        """Everything that can be told of it, for JSON."""
        clean, table = self.clean_accuracy, self.accuracies
        measures = {key: self.mean(names).to_dict() if self.has(names) else None for key, names in MEASURES.items()}
        return {
            "images": self.n,
            "severities": list(self.severities),
            "clean": None if clean is None else clean.to_dict(),
            **measures,
            "all": self.mean().to_dict(),
            "corruptions": {
                name: {
                    "accuracy": float(row.mean()),
                    "by_severity": dict(zip(map(str, self.severities), row.tolist(), strict=True)),
                }
                for name, row in zip(self.names, table, strict=True)
            },
        }
