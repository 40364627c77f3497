"""Frost on a window: crystals made by a formula, since the published sets use photographs that are not ours to ship."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from convpeft.data.corruptions.pixels import Pixels, tint
from convpeft.data.corruptions.plasma import plasma

_PATTERNS = 6
_ICE = (0.80, 0.91, 1.0)
_LEAST = 256  # pixels of a pattern's side
_SEED = 20190509
_SMALL, _LARGE = 5.0, 14.0  # pixels from crystal to crystal, in images up to 64 pixels and above
_SMALL_SIDE = 64


def frost(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Dim the image and add a piece of one of six patterns of ice, cut out at random."""
    kept, added = constants
    height, width, channels = image.shape
    side = max(height, width)
    ice = _pattern(int(rng.integers(_PATTERNS)), 1 << (max(_LEAST, 2 * side) - 1).bit_length(), side <= _SMALL_SIDE)
    top, left = rng.integers(0, len(ice) - height + 1), rng.integers(0, len(ice) - width + 1)
    piece = ice[top : top + height, left : left + width, None]
    return kept * image + added * piece * tint(_ICE, channels)


@lru_cache(maxsize=2 * _PATTERNS)
def _pattern(number: int, side: int, small: bool) -> Pixels:
    """One pattern (side, side) from 0 to 1: needles in three directions, thick where a map of clouds is high."""
    rng = np.random.default_rng([_SEED, number, side, small])
    distance = _SMALL if small else _LARGE
    turn = rng.uniform(0, np.pi)
    needles = np.zeros((side, side))
    for branch in range(3):  # ice grows in angles of sixty degrees
        for scale, weight in ((1.0, 0.6), (0.45, 0.4)):
            lines = _ridges(side, distance * scale, turn + branch * np.pi / 3, rng)
            needles = np.maximum(needles, weight * lines + (1 - weight) * lines * needles)
    cover = plasma(side, 1.7, rng)
    cover = np.clip((cover - 0.25) / 0.4, 0, 1)
    grain = rng.uniform(0.85, 1, size=(side, side))
    pattern = (0.25 + 0.75 * needles) * (0.3 + 0.7 * cover) * grain
    low, high = np.quantile(pattern, [0.01, 0.995])
    return np.clip((pattern - low) / (high - low), 0, 1)


def _ridges(side: int, distance: float, angle: float, rng: np.random.Generator) -> Pixels:
    """Bright lines along a direction, so many pixels apart: the crests of noise that varies slowly along it."""
    rows, columns = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    band = np.exp(-(((np.abs(across) - 1 / (2 * distance)) * 2.5 * distance) ** 2) - (along * 6 * distance) ** 2)
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) * band, s=(side, side))
    return np.exp(-((noise / (0.35 * noise.std())) ** 2))
