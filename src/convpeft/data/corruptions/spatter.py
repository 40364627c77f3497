"""Drops of water, or of mud, on the lens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from convpeft.data.corruptions.blur import smooth
from convpeft.data.corruptions.pixels import Pixels, tint

_WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
_MUD = (63 / 255, 42 / 255, 20 / 255)
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float64)  # light from the upper left
_FAR = 20.0  # pixels from the outline of a drop beyond which it is flat
_OPAQUE = 0.8  # less mud than this is none


def spatter(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Wet the lens where smoothed noise is above a level: water adds light in relief, mud covers.

    The outline of drops is that of the level, where the published program looks for edges by Canny's method.

    Args:
        image: (height, width, channels).
        constants: Mean and deviation of the noise, its smoothness, the level, the strength of the water or the
            softness of the mud, and 1 for mud.
        rng: Where the drops are from.
    """
    mean, deviation, sigma, level, amount, mud = constants
    liquid = smooth(rng.normal(mean, deviation, size=(*image.shape[:2], 1)), sigma)
    wet = liquid >= level
    if mud:
        cover = smooth(wet.astype(np.float64), amount)
        cover[cover < _OPAQUE] = 0
        return (1 - cover) * image + cover * tint(_MUD, image.shape[2])
    relief = np.where(wet, liquid, 0)[..., 0] * _drops(wet[..., 0])
    highest = relief.max()
    if highest <= 0:
        return image
    return image + (amount / highest) * relief[..., None] * tint(_WATER, image.shape[2])


def _drops(wet: NDArray[np.bool_]) -> Pixels:
    """How light drops are: the distance from their outline, evened out, as a relief."""
    inner = cast(NDArray[np.bool_], ndimage.binary_erosion(wet, border_value=1))
    outline = wet & ~inner
    if not outline.any():
        return np.ones(wet.shape)
    depth = np.minimum(cast(Pixels, ndimage.distance_transform_edt(~outline)), _FAR)
    even = _equalised(np.floor(_box(depth)).astype(np.intp))
    relief = np.clip(ndimage.correlate(even, _RELIEF, mode="mirror"), 0, 255)
    return _box(relief)


def _box(values: Pixels) -> Pixels:
    return ndimage.uniform_filter(values, 3, mode="mirror")


def _equalised(values: NDArray[np.intp]) -> Pixels:
    """Spread levels over 0 to 255 so that each part of that range holds the same number of pixels."""
    counts = np.bincount(values.ravel())
    first = counts[np.flatnonzero(counts)[0]]
    rest = values.size - first
    steps = (np.cumsum(counts) - first) / rest if rest else np.zeros(len(counts))
    return np.rint(255 * np.clip(steps, 0, 1))[values]
