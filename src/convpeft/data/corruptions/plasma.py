"""A map of clouds: hills on hills, made by the diamond-square procedure."""

from __future__ import annotations

import numpy as np

from convpeft.data.corruptions.pixels import Pixels

_FIRST = 100.0  # height of the largest hills; only ratios matter, since the map is stretched to 0..1


def plasma(side: int, decay: float, rng: np.random.Generator) -> Pixels:
    """Make a map (size, size) from 0 to 1 that repeats itself at its edges; size is the power of two from `side` up.

    Each round halves the distance of the points that are known: first the centre of each square, then of each diamond
    gets the mean of its four neighbours and a random part.

    Args:
        side: Pixels that are needed.
        decay: How much smaller that part gets with each round: 1 is rough, 3 is smooth. Its bound is the square of a
            height that is divided by it, as in the published sets.
        rng: Where the map comes from.
    """
    size = 1 << max(1, (side - 1).bit_length())
    heights = np.zeros((size, size))
    step, height = size, _FIRST
    while step >= 2:
        half, bound = step // 2, height**2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres = (pairs + np.roll(pairs, -1, axis=1)) / 4 + rng.uniform(-bound, bound, corners.shape)
        heights[half::step, half::step] = centres
        upright = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = upright / 4 + rng.uniform(-bound, bound, corners.shape)
        across = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = across / 4 + rng.uniform(-bound, bound, corners.shape)
        step, height = half, height / decay
    heights -= heights.min()
    return heights / heights.max()
