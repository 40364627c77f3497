"""Light and colour: brightness and saturation, changed in the HSV model in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convpeft.data.corruptions.pixels import Pixels


def brightness(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Raise the value V = max(R, G, B) at the same hue and saturation: all three grow by the same factor."""
    (more,) = constants
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)


def saturate(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Change the saturation S = (V - min) / V to factor S + more; an image of one channel has none and stays.

    A grey pixel of a colour image has the hue red, by the convention of the HSV model, as in the published sets.
    """
    factor, more = constants
    if image.shape[2] == 1:
        return image
    value = image.max(axis=2, keepdims=True)
    spread = value - image.min(axis=2, keepdims=True)
    saturation = spread / np.where(value > 0, value, 1)
    wanted = np.clip(factor * saturation + more, 0, 1)
    coloured = value - (value - image) * wanted / np.where(saturation > 0, saturation, 1)
    red = np.concatenate([value, value * (1 - wanted), value * (1 - wanted)], axis=2)
    return np.where(spread > 0, coloured, red)
