"""Comparing: a grid of runs from one file, tuned alike, done by any number of processes, and put side by side."""

from convpeft.comparing.grid import Grid, read_grid
from convpeft.comparing.report import write_comparison

__all__ = ["Grid", "read_grid", "write_comparison"]
