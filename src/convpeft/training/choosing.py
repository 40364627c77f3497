"""How a run computes its model: chosen at its first step, kept to its end, and taken again when it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from convpeft.attachment import require_state
from convpeft.autotuning import autotune
from convpeft.kernels import KERNELS, LAYOUTS, KernelPlan
from convpeft.speed import keep_kernels, set_kernels
from convpeft.training.recipe import TrainSection

Told = Callable[[int, int], None]  # so many measurements are done, and of how many

RECORD = "kernels"  # key of a checkpoint's facts


class Choice:
    """The kernels, layout and folding of one training.

    Args:
        model: A model with adapters.
        settings: What is asked for.
    """

    def __init__(self, model: nn.Module, settings: TrainSection) -> None:
        computing = require_state(model).computing
        self.plan: KernelPlan | None = None  # once the first step is done
        self._model, self._tunes = model, settings.autotune
        self._before = (computing.kernel, computing.layout, computing.fold, computing.forced)
        set_kernels(model, kernel=settings.kernel, layout=settings.layout, fold=settings.fold)

    def begin(self, images: Tensor, told: Told | None = None) -> None:
        """Measure before the first step, if that was asked for."""
        if self._tunes and self.plan is None:
            autotune(self._model, images, told=told)

    def settle(self) -> None:
        """After the first step: keep what it chose; the last batch of an epoch may be smaller and choose otherwise."""
        if self.plan is None:
            self.plan = keep_kernels(self._model)

    def repeat(self, facts: Mapping[str, Any]) -> None:
        """Take what a checkpoint records; without a usable record the next step chooses.

        Raises:
            OptionError: If the record is of another model.
        """
        plan = read_record(facts)
        if plan is not None:
            set_kernels(self._model, **plan.as_request())
            self.plan = plan

    def release(self) -> None:
        """Leave the model with what was asked for before; what was chosen can still be seen."""
        computing = require_state(self._model).computing
        computing.kernel, computing.layout, computing.fold, computing.forced = self._before


def read_record(facts: Mapping[str, Any]) -> KernelPlan | None:
    """The plan that a checkpoint's facts hold; None where there is none or it is damaged."""
    found = facts.get(RECORD)
    if not isinstance(found, dict):
        return None
    record = cast(dict[str, Any], found)
    maps = [record.get(name) for name in ("sites", "folded", "unfolded")]
    asked = (record.get("kernel"), record.get("layout"), record.get("fold"))
    if asked[0] not in KERNELS or asked[1] not in LAYOUTS or not isinstance(asked[2], bool):
        return None
    if not all(isinstance(each, dict) and all(map(_is_text, cast(Any, each).items())) for each in maps):
        return None
    if not set(cast(dict[str, str], maps[0]).values()) <= set(KERNELS):
        return None
    return KernelPlan(*asked, *cast(list[dict[str, str]], maps))  # pyright: ignore[reportArgumentType]


def _is_text(pair: tuple[Any, Any]) -> bool:
    return isinstance(pair[0], str) and isinstance(pair[1], str)
