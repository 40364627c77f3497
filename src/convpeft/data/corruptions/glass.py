"""The view through frosted glass: pixels change places with their neighbours, between two blurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convpeft.data.corruptions.blur import smooth
from convpeft.data.corruptions.pixels import Pixels


def glass_blur(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Blur, put a near pixel in the place of each, and blur again.

    The published program means to swap two pixels. It copies the one onto the other, since both sides of its
    assignment show the same memory; the published images have it so, and so have these.
    """
    sigma, reach, rounds = constants[0], int(constants[1]), int(constants[2])
    height, width, channels = image.shape
    source = list(range(height * width))  # where each pixel is taken from; a list is faster here than an array
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    for _ in range(rounds):
        steps = rng.integers(-reach, reach, size=(2, max(0, len(rows)) * max(0, len(columns))))
        moves = (steps[1] * width + steps[0]).tolist()
        places = (row * width + column for row in rows for column in columns)
        for place, move in zip(places, moves, strict=True):
            source[place] = source[place + move]
    shuffled = smooth(image, sigma).reshape(-1, channels)[source].reshape(image.shape)
    return smooth(shuffled, sigma)
