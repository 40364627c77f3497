"""The form in which corruptions see an image, and the way to it and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]
"""(height, width, channels) of numbers from 0 to 1, channels one or three."""

Corruption = Callable[[Pixels, Sequence[float], np.random.Generator], Pixels]
"""Takes an image, the constants of a severity, and all its chance from the generator."""

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601


def to_pixels(image: NDArray[np.uint8]) -> Pixels:
    """The numbers of an image from 0 to 1."""
    return image / 255.0


def to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """Cut off what is below 0 or above 1, and round to 256 levels."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def grey_of(pixels: Pixels) -> Pixels:
    """How light each place is, (height, width, 1)."""
    return pixels if pixels.shape[2] == 1 else (pixels @ LUMA)[..., None]


def tint(colour: Sequence[float], channels: int) -> Pixels:
    """A colour (red, green, blue) from 0 to 1 for an image of so many channels: for one channel, how light it is."""
    rgb = np.asarray(colour, dtype=np.float64)
    return rgb if channels == 3 else np.array([rgb @ LUMA])
