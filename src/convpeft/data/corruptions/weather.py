"""Weather in the air: fog, snow and rain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convpeft.data.corruptions.motion import blur_along
from convpeft.data.corruptions.pixels import Pixels, grey_of
from convpeft.data.corruptions.plasma import plasma
from convpeft.data.corruptions.zoom import zoom

_WET = 0.75  # how light a streak of rain is
_DULL = 0.45  # how light the air is while it rains
_SLANT = 20  # degrees off the vertical at most


def fog(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Add a map of clouds, and darken all so that the lightest place stays as light as it was."""
    density, decay = constants
    height, width = image.shape[:2]
    clouds = plasma(max(height, width), decay, rng)[:height, :width, None]
    lightest = image.max()
    return (image + density * clouds) * lightest / (lightest + density)


def snow(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Whiten the image, and add flakes that fall, once as they are and once turned round."""
    mean, deviation, size, least, radius, sigma, kept = constants
    flakes = zoom(rng.normal(mean, deviation, size=(*image.shape[:2], 1)), size)
    flakes[flakes < least] = 0
    flakes = blur_along(np.clip(flakes, 0, 1), radius, sigma, rng.uniform(-135, -45))
    white = np.maximum(image, 1.5 * grey_of(image) + 0.5)
    return kept * image + (1 - kept) * white + flakes + flakes[::-1, ::-1]


def rain(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Dull the image, and lay over it streaks that all fall the same way.

    It is no part of the published sets, and nothing here is taken from one.

    Args:
        image: (height, width, channels).
        constants: Share of pixels where a streak ends, its length in pixels, how much a streak covers what is behind
            it, and how much the air does.
        rng: Where streaks and their slant come from.
    """
    share, length, cover, haze = constants
    drops = (rng.random((*image.shape[:2], 1)) < share) * rng.uniform(0.5, 1, size=(*image.shape[:2], 1))
    slant = rng.uniform(-_SLANT, _SLANT)
    # the line has 2 radius + 1 pixels; a wide Gaussian makes them nearly even, and its peak is brought back to one
    streaks = blur_along(drops, length / 2, length / 2, 90 + slant) * (length / 2)
    veil = np.clip(cover * streaks, 0, cover)
    dull = (1 - haze) * image + haze * _DULL
    return (1 - veil) * dull + veil * _WET
