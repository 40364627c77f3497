"""What a computer does to an image: less contrast, large pixels, JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from convpeft.data.corruptions.pixels import Pixels, to_bytes, to_pixels


def contrast(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Bring all numbers nearer to the mean of their channel."""
    (kept,) = constants
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + kept * (image - mean)


def pixelate(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Make the image smaller by the means of boxes, and as large as before again by the same."""
    (share,) = constants
    height, width = image.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    picture = _picture(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    return _pixels(picture, image)


def jpeg_compression(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Write the image as JPEG of a quality and read it again."""
    (quality,) = constants
    stream = io.BytesIO()
    _picture(image).save(stream, "JPEG", quality=int(quality))
    with Image.open(stream) as picture:
        return _pixels(picture, image)


def _picture(image: Pixels) -> Image.Image:
    pixels = to_bytes(image)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _pixels(picture: Image.Image, image: Pixels) -> Pixels:
    return to_pixels(np.asarray(picture, dtype=np.uint8).reshape(image.shape))
