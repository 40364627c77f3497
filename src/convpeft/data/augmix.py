"""AugMix: mix an image with chains of mild operations on it, none of which is a test corruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WIDTH = 3  # chains
_DEEPEST = 3  # operations of a chain at most
_ALPHA = 1.0  # of the Dirichlet and Beta distributions that weigh chains
_SEVERITY = 3.0  # largest strength of an operation, of 10
_MOST = 10.0

Picture = Image.Image


def augmix(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mix an image with three chains of one to three operations on it.

    mixed = (1 - m) * image + m * sum_k w_k * chain_k(image), m ~ Beta(1, 1), w ~ Dirichlet(1, 1, 1)

    The paper mixes normalised images, which gives the same mixture; here it is rounded to 256 levels. The paper's loss
    that asks three views for the same answer (Jensen-Shannon) is not part of this.

    Args:
        image: uint8 (height, width, 1 or 3).
        rng: Where operations, strengths and weights come from.

    Returns:
        uint8, the same shape.

    Source:
        Hendrycks et al., "AugMix: a simple data processing method to improve robustness and uncertainty", ICLR 2020,
        arXiv 1912.02781, algorithm 1: without contrast, colour, brightness and sharpness, which test corruptions are.
    """
    weights = rng.dirichlet([_ALPHA] * _WIDTH)
    share = rng.beta(_ALPHA, _ALPHA)
    plain = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    mixture = np.zeros(image.shape)
    for weight in weights:
        picture = plain
        for _ in range(rng.integers(1, _DEEPEST + 1)):
            operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
            picture = operation(picture, rng.uniform(0.1, _SEVERITY) / _MOST, 1 if rng.random() < 0.5 else -1)
        mixture += weight * np.asarray(picture, dtype=np.float64).reshape(image.shape)
    return np.rint((1 - share) * image + share * mixture).clip(0, 255).astype(np.uint8)


def _stretch(picture: Picture, strength: float, sign: int) -> Picture:
    return ImageOps.autocontrast(picture)


def _equalise(picture: Picture, strength: float, sign: int) -> Picture:
    return ImageOps.equalize(picture)


def _posterise(picture: Picture, strength: float, sign: int) -> Picture:
    return ImageOps.posterize(picture, 4 - int(4 * strength))


def _solarise(picture: Picture, strength: float, sign: int) -> Picture:
    return ImageOps.solarize(picture, 256 - int(256 * strength))


def _turn(picture: Picture, strength: float, sign: int) -> Picture:
    return picture.rotate(sign * int(30 * strength), resample=Image.Resampling.BILINEAR)


def _shear_x(picture: Picture, strength: float, sign: int) -> Picture:
    return _moved(picture, (1, sign * 0.3 * strength, 0, 0, 1, 0))


def _shear_y(picture: Picture, strength: float, sign: int) -> Picture:
    return _moved(picture, (1, 0, 0, sign * 0.3 * strength, 1, 0))


def _shift_x(picture: Picture, strength: float, sign: int) -> Picture:
    return _moved(picture, (1, 0, sign * int(picture.width / 3 * strength), 0, 1, 0))


def _shift_y(picture: Picture, strength: float, sign: int) -> Picture:
    return _moved(picture, (1, 0, 0, 0, 1, sign * int(picture.height / 3 * strength)))


def _moved(picture: Picture, back: tuple[float, ...]) -> Picture:
    return picture.transform(picture.size, Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR)


_OPERATIONS: tuple[Callable[[Picture, float, int], Picture], ...] = (
    *(_stretch, _equalise, _posterise, _solarise, _turn),
    *(_shear_x, _shear_y, _shift_x, _shift_y),
)
