"""Blur of the lens: out of focus, and the plain Gaussian one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from convpeft.data.corruptions.pixels import Pixels


def smooth(image: Pixels, sigma: float) -> Pixels:
    """A Gaussian over both sides of an image (height, width, channels), to four deviations, the edge repeated."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def gaussian_blur(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Blur by a Gaussian of a deviation in pixels."""
    (sigma,) = constants
    return smooth(image, sigma)


def defocus_blur(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Blur by a disk, as a lens that is out of focus does; borders are mirrored."""
    radius, softness = constants
    return ndimage.correlate(image, disk(radius, softness)[..., None], mode="mirror")


@lru_cache(maxsize=16)
def disk(radius: float, softness: float) -> Pixels:
    """The weights of a disk, softened by a Gaussian of 3 x 3 numbers (5 x 5 above a radius of 8); they sum to one.

    Args:
        radius: In pixels; below one the disk is a single pixel.
        softness: Deviation of that Gaussian.
    """
    reach = 1 if radius <= 8 else 2
    ends = int(radius) + reach
    steps = np.arange(-ends, ends + 1)
    solid = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    line = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        solid = ndimage.correlate1d(solid, line, axis=axis, mode="constant")
    return solid / solid.sum()
