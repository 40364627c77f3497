"""The results on disk: what is measured, what is missing, and the rates that it chose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.lines import Line, Lines
from plan import RATES, RESTORING, TUNE, budget_of, cases, key_of


class Store(Lines):
    """The lines that are there, the budget first."""

    def missing(self) -> list[Line]:
        """The cases of the plan that are not measured yet."""
        known = {key_of(line) for line in measured(self.lines)}
        return [case for case in cases(budget_of(self.lines[0]["budget"])) if key_of(case) not in known]


def measured(lines: Sequence[Line]) -> list[Line]:
    """The lines that belong to a case."""
    return [line for line in lines if line["kind"] not in ("budget", "input")]


def chosen_rates(lines: Sequence[Line]) -> dict[str, float]:
    """Of each way to restore, the rate with the highest validation accuracy, the mean over what was restored."""
    tried = [each for line in lines if line["kind"] == TUNE for each in line["tried"]]

    def worth(arm: str, rate: float) -> tuple[float, float]:
        own = [each for each in tried if (each["arm"], each["rate"]) == (arm, rate)]
        losses = [math.inf if each["val_loss"] is None else each["val_loss"] for each in own]
        return sum(each["val_accuracy"] for each in own), -sum(losses)

    return {arm: max(RATES, key=lambda rate, arm=arm: worth(arm, rate)) for arm in RESTORING} if tried else {}
