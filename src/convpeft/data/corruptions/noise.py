"""Noise of the camera: electronic, of few photons, of broken pixels, and noise that grows with the light."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convpeft.data.corruptions.pixels import Pixels


def gaussian_noise(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Add noise of one deviation everywhere: x + N(0, deviation)."""
    (deviation,) = constants
    return image + rng.normal(scale=deviation, size=image.shape)


def shot_noise(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Count photons: Poisson(x * photons) / photons, of mean x and variance x / photons."""
    (photons,) = constants
    return rng.poisson(image * photons) / photons


def impulse_noise(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Set a share of the numbers to black or white, half of them each; channels one by one."""
    (share,) = constants
    noisy = image.copy()
    drawn = rng.random(image.shape)
    noisy[drawn < share] = 1
    noisy[drawn < share / 2] = 0
    return noisy


def speckle_noise(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Add noise in proportion to the light: x + x N(0, deviation)."""
    (deviation,) = constants
    return image + image * rng.normal(scale=deviation, size=image.shape)
