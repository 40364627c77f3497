"""Training: a recipe, the loop, checkpoints, and the run that a recipe produces."""

from convpeft.training.preparing import prepare_run
from convpeft.training.recipe import Recipe, make_recipe, read_recipe
from convpeft.training.results import Result
from convpeft.training.runs import train

__all__ = ["Recipe", "Result", "make_recipe", "prepare_run", "read_recipe", "train"]
