"""Blur of a zoom: the mean of an image with larger and larger cut-outs of its middle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from convpeft.data.corruptions.pixels import Pixels


def zoom_blur(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Take the mean over zooms from 1 up to a largest, in steps."""
    largest, step = constants
    factors = np.arange(1, largest, step).tolist()
    total = image.copy()
    for factor in factors:
        total += zoom(image, factor)
    return total / (len(factors) + 1)


def zoom(image: Pixels, factor: float) -> Pixels:
    """Enlarge the middle of an image (height, width, channels) to its whole size, between pixels linearly."""
    height, width, channels = image.shape
    rows, columns = _stretch(height, factor), _stretch(width, factor)
    tall = (rows @ image.reshape(height, -1)).reshape(height, width, channels)
    return columns @ tall


@lru_cache(maxsize=256)
def _stretch(side: int, factor: float) -> Pixels:
    """The matrix (side, side) that enlarges one side: linear interpolation is a sum of two neighbours."""
    kept = math.ceil(side / factor)
    first = (side - kept) // 2
    out = max(side, round(kept * factor))
    places = (np.arange(side) + (out - side) // 2) * ((kept - 1) / max(1, out - 1))
    below = np.minimum(places.astype(int), max(0, kept - 2))
    matrix = np.zeros((side, side))
    matrix[np.arange(side), first + below] = 1 - (places - below)
    matrix[np.arange(side), first + np.minimum(below + 1, kept - 1)] += places - below
    return matrix
