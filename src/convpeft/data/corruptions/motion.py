"""Blur of movement along a line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convpeft.data.corruptions.pixels import Pixels


def motion_blur(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Blur along a line of any slope up to 45 degrees, as by a moving camera."""
    radius, sigma = constants
    return blur_along(image, radius, sigma, rng.uniform(-45, 45))


def blur_along(image: Pixels, radius: float, sigma: float, degrees: float) -> Pixels:
    """Blur along a line that starts at each pixel and goes one way; the edge is repeated.

    Args:
        image: (height, width, channels).
        radius: The line has 2 radius + 1 pixels.
        sigma: Deviation of the half Gaussian that weighs them.
        degrees: Direction of the line, clockwise from the right.
    """
    weights = line_weights(radius, sigma)
    angle, steps = math.radians(degrees), np.arange(len(weights))
    down = np.ceil(steps * math.sin(angle) - 0.5).astype(int)  # to the nearest pixel
    right = np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    margin, (height, width) = len(weights), image.shape[:2]
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    blurred = np.zeros_like(image)
    for weight, y, x in zip(weights, margin + down, margin + right, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return blurred


def line_weights(radius: float, sigma: float) -> Pixels:
    """Half a Gaussian over 2 radius + 1 pixels, with a sum of one."""
    weights = np.exp(-(np.arange(2 * math.ceil(radius) + 1.0) ** 2) / (2 * sigma**2))
    return weights / weights.sum()
