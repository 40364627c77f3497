"""Corruptions of images, as CIFAR-10-C and ImageNet-C have them, and rain: made anew, always the same.

This package tells names and constants only. `convpeft.data.corruptions.corrupting` makes the images and needs scipy.
"""

from convpeft.data.corruptions.names import ALL, COMMON, EXTRA, RAIN, read_names, read_severities
from convpeft.data.corruptions.severities import TABLES, choose_table

__all__ = ["ALL", "COMMON", "EXTRA", "RAIN", "TABLES", "choose_table", "read_names", "read_severities"]
