"""From rows to figures: ratios with their spread, targets, and who is slower than whom."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from measures import spread
from plan import MERGED_WITHIN, MODES, NETS, PREFIX_MOST, TARGETS

Row = dict[str, Any]
PREFIX = "epoch from the prefix cache (last stage + head)"


@dataclass(frozen=True)
class Figures:
    """What one row says, as ratios to its baseline; spreads are quartiles around a median."""

    row: Row

    @property
    def time(self) -> tuple[float, float, float]:
        return spread(self.row["ratios"])

    @property
    def images_per_second(self) -> float:
        return self.row["batch"] / statistics.median(self.row["times"])

    @property
    def saved(self) -> float:
        return self.row["saved_bytes"] / self.row["of_baseline"]["saved_bytes"]

    @property
    def memory(self) -> float:
        return self.row["memory_bytes"] / self.row["of_baseline"]["memory_bytes"]

    @property
    def operations(self) -> float:
        own = self.row["operations_forward"] + self.row["operations_backward"]
        return own / self.row["of_baseline"]["operations"]

    @property
    def merged(self) -> tuple[float, float, float] | None:
        found = self.row.get("inference_ratios")
        return spread(found) if found else None

    def of(self, field: str) -> float:
        """The figure of a target."""
        return self.time[1] if field == "time" else self.saved


@dataclass(frozen=True)
class Verdict:
    """One target on one network; `found` is None where it was not measured."""

    figure: str
    net: str
    wanted: str
    found: float | None
    met: bool


def row_of(content: Row, net: str, mode: str) -> Row | None:
    """A row that has its figures."""
    rows = [row for row in content["methods"] if (row["net"], row["mode"]) == (net, mode) and "ratios" in row]
    return rows[0] if rows else None


def verdicts(content: Row) -> Iterator[Verdict]:
    """Every target, in the order of the plan."""
    for target in TARGETS:
        for net, most in target.most.items():
            row = row_of(content, net, target.mode)
            found = None if row is None else Figures(row).of(target.field)
            yield Verdict(target.figure, net, f"<= {most:.2f}", found, found is not None and round(found, 2) <= most)
    for row in content["prefix"]:
        if row["net"] in TARGETS[0].most and "cached_seconds" in row:
            found = max(ratios_of(row))
            figure = f"{PREFIX}, {row['size']} pixels"
            yield Verdict(figure, row["net"], f"<= {PREFIX_MOST:.2f}", found, round(found, 2) <= PREFIX_MOST)
    for net in TARGETS[0].most:
        row = row_of(content, net, "default")
        middle = (Figures(row).merged or (None,) * 3)[1] if row else None
        met = middle is not None and abs(round(middle, 2) - 1) <= MERGED_WITHIN
        yield Verdict("merged inference", net, f"1.00 +- {MERGED_WITHIN:.2f}", middle, met)


def ratios_of(row: Row) -> tuple[float, float]:
    """An epoch from the cache against one of full fine-tuning, by convpeft and by a plain loop of PyTorch."""
    own = statistics.median(row["cached_seconds"])
    return own / statistics.median(row["full_seconds"]), own / statistics.median(row["plain_seconds"])


@dataclass(frozen=True)
class Duel:
    """convpeft's method against the same method of another library on one network, as ratios to one baseline."""

    net: str
    rival: str
    own: tuple[float, float, float]
    other: tuple[float, float, float]

    @property
    def quotient(self) -> float:
        """Below one where convpeft is faster."""
        return self.own[1] / self.other[1]

    @property
    def verdict(self) -> str:
        """Within the quartiles of both nobody is faster."""
        if self.own[0] > self.other[2]:
            return "slower"
        return "faster" if self.own[2] < self.other[0] else "no difference seen"


def duels(content: Row) -> list[Duel]:
    """Every rival with the same method, where both were measured."""
    found = []
    for net in NETS:
        for name, mode in MODES.items():
            own, other = (row_of(content, net, each) for each in (mode.same_as, name))
            if mode.same_as and own and other:
                found.append(Duel(net, name, Figures(own).time, Figures(other).time))
    return found


def against(content: Row, net: str, mode: str, base: str) -> float | None:
    """Step time of one mode through that of another; both were measured against the same baseline."""
    own, other = (row_of(content, net, each) for each in (mode, base))
    return Figures(own).time[1] / Figures(other).time[1] if own and other else None
