"""Training: a recipe, the loop, checkpoints, and the run that a recipe produces.

All but the recipe is imported when it is first asked for, so that a mistyped option is told without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convpeft.training.recipe import Recipe, make_recipe, read_recipe

if TYPE_CHECKING:
    from convpeft.training.preparing import prepare_run
    from convpeft.training.results import Result
    from convpeft.training.runs import train

__all__ = ["Recipe", "Result", "make_recipe", "prepare_run", "read_recipe", "train"]

_LAZY = {"prepare_run": "preparing", "Result": "results", "train": "runs"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"convpeft.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'convpeft.training' has no attribute {name!r}")
