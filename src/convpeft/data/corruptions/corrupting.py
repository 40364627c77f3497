"""Corrupt an image by name and severity, always in the same way for the same image."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from convpeft.data.corruptions import blur, colour, digital, elastic, frost, glass, motion, noise, spatter, weather
from convpeft.data.corruptions.names import SEVERITIES, read_names
from convpeft.data.corruptions.pixels import Corruption, to_bytes, to_pixels
from convpeft.data.corruptions.severities import TABLES, choose_table
from convpeft.data.corruptions.zoom import zoom_blur
from convpeft.errors import DataError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": glass.glass_blur,
    "motion_blur": motion.motion_blur,
    "zoom_blur": zoom_blur,
    "snow": weather.snow,
    "frost": frost.frost,
    "fog": weather.fog,
    "brightness": colour.brightness,
    "contrast": digital.contrast,
    "elastic_transform": elastic.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter.spatter,
    "saturate": colour.saturate,
    "rain": weather.rain,
}


def corrupt(
    image: NDArray[np.uint8], name: str, severity: int, *, index: int, table: str = "auto"
) -> NDArray[np.uint8]:
    """Corrupt an image; the same image, name, severity and index give the same bytes, whatever was done before.

    Numbers are rounded to the nearest of 256 levels, where the published programs cut them off.

    Args:
        image: uint8 (height, width, 3), or of one channel (height, width, 1) or (height, width), which stays grey.
        name: One of `convpeft.data.corruptions.ALL`.
        severity: 1 to 5.
        index: The image's number in its data set.
        table: "cifar", "imagenet" or "auto", by the image's size.

    Returns:
        uint8, the shape of the image.

    Raises:
        OptionError: If there is no such corruption, severity or table.
        DataError: If the image is of another type or form.
    """
    return corrupt_with(image, name, severity, rng=generator_of(name, severity, index), table=table)


def corrupt_with(
    image: NDArray[np.uint8], name: str, severity: int, *, rng: np.random.Generator, table: str = "auto"
) -> NDArray[np.uint8]:
    """Corrupt an image as `corrupt` does, with the chance of a generator.

    Raises:
        OptionError: If there is no such corruption, severity or table.
        DataError: If the image is of another type or form.
    """
    if name not in _CORRUPTIONS:
        (name,) = read_names(name)
    if severity not in SEVERITIES:
        raise OptionError(f"severity={severity!r} is out of range. Pass a whole number from 1 to 5.")
    planes = image[..., None] if image.ndim == 2 else image
    if planes.dtype != np.uint8 or planes.ndim != 3 or planes.shape[2] not in (1, 3) or 0 in planes.shape:
        raise DataError(
            f"corrupt: expected uint8 (height, width, 1 or 3), got {image.dtype} {image.shape}. "
            "Bring the image to one or three channels first."
        )
    constants = TABLES[choose_table((planes.shape[0], planes.shape[1]), table)][name][severity - 1]
    return to_bytes(_CORRUPTIONS[name](to_pixels(planes), constants, rng)).reshape(image.shape)


def generator_of(name: str, severity: int, index: int) -> np.random.Generator:
    """The generator of one image of one severity of one corruption."""
    digest = hashlib.blake2b(f"{name}/{severity}/{index}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
