"""Data sets and images: find them, read them safely, split them, and serve them in batches.

`ImageBatches` and `prepare` need torch and are imported when they are first asked for, so that the command
line can list sources without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convpeft.data.datasets import Dataset, ImageStore, Split
from convpeft.data.duplicates import find_duplicates
from convpeft.data.images import read_image
from convpeft.data.sources import SourceInfo, list_sources, load_data

if TYPE_CHECKING:
    from convpeft.data.batches import ImageBatches
    from convpeft.data.preparing import prepare

__all__ = [
    "Dataset",
    "ImageBatches",
    "ImageStore",
    "SourceInfo",
    "Split",
    "find_duplicates",
    "list_sources",
    "load_data",
    "prepare",
    "read_image",
]

_LAZY = {"ImageBatches": "convpeft.data.batches", "prepare": "convpeft.data.preparing"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'convpeft.data' has no attribute '{name}'")
