"""Bring a picture to the size and channels that a model was trained with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage

    from convpeft.models.preprocessing import Preprocessing

# Pillow's own fixed-point form of ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
_LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)


def prepare(image: NDArray[np.uint8], preprocessing: Preprocessing) -> torch.Tensor:
    """Resize, crop or pad a picture and convert its channels.

    "crop": the shorter side becomes size / crop, then the centre is cut out (the same pixels as
    torchvision's Resize and CenterCrop). "squash": both sides become size / crop, whatever the aspect, then
    the centre. "pad": the picture is fitted in whole and centred on black; `crop` has no part in it.

    Args:
        image: uint8 (height, width, channels).
        preprocessing: What the model expects.

    Returns:
        uint8 (channels, height, width), a picture that fits is returned unchanged.

    Raises:
        DataError: If the channels cannot be converted.
    """
    # Fewer channels first: grey is resized once, not three times.
    grey = image.shape[2] == 1 or preprocessing.channels == 1
    pixels = convert_channels(image, 1 if grey else preprocessing.channels)
    pixels = _resize(pixels, preprocessing)
    planes = convert_channels(pixels, preprocessing.channels).transpose(2, 0, 1)
    # Always a copy: the source may be read-only, and its owner must not see what happens to the tensor.
    return torch.from_numpy(np.array(planes, order="C"))


def convert_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert uint8 (..., channels): grey is repeated, alpha goes on white, colour becomes grey by ITU-R 601.

    Raises:
        DataError: If there is no rule for the pair.
    """
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if found == 1:
        return np.repeat(pixels, channels, axis=-1)
    if found == 4 and channels in (1, 3):
        alpha = pixels[..., 3:].astype(np.uint32)
        white = pixels[..., :3] * alpha + 255 * (255 - alpha)
        return convert_channels(((white + 127) // 255).astype(np.uint8), channels)
    if found == 3 and channels == 1:
        grey = (pixels.astype(np.uint32) @ _LUMA + 0x8000) >> 16
        return grey.astype(np.uint8)[..., None]
    raise DataError(
        f"images have {found} channels, the model takes {channels}, and no rule turns one into the other. "
        f"Load the model with in_channels={found}."
    )


def fits(shape: tuple[int, ...], preprocessing: Preprocessing) -> bool:
    """Say whether a picture (height, width, ...) has the size that `prepare` would give it anyway."""
    return tuple(shape[:2]) == tuple(preprocessing.size) and (preprocessing.resize == "pad" or preprocessing.crop == 1)


def _resize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    if fits(pixels.shape, preprocessing):
        return pixels
    from PIL import Image

    channels = pixels.shape[2]
    # Pillow would weight colours by what it takes for alpha, so odd counts go one channel at a time.
    planes = [pixels] if channels == 3 else [pixels[:, :, i] for i in range(channels)]
    resized = [np.asarray(_resize_plane(Image.fromarray(plane), preprocessing)) for plane in planes]
    return resized[0] if channels == 3 else np.stack(resized, axis=2)


def _resize_plane(image: PillowImage, preprocessing: Preprocessing) -> PillowImage:
    from PIL import Image

    method = Image.Resampling[preprocessing.interpolation.upper()]
    (height, width), crop = preprocessing.size, preprocessing.crop
    if preprocessing.resize == "pad":
        scale = min(height / image.height, width / image.width)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        page = Image.new(image.mode, (width, height))
        page.paste(image.resize(inner, method), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return page
    tall, wide = math.floor(height / crop), math.floor(width / crop)
    if preprocessing.resize == "crop":
        if tall * image.width >= wide * image.height:
            wide = max(wide, int(tall * image.width / image.height))
        else:
            tall = max(tall, int(wide * image.height / image.width))
    # Only the part that stays is computed: a strip of 1 x 50,000 pixels must not become a wall.
    left, top = round((wide - width) / 2), round((tall - height) / 2)
    across, down = image.width / wide, image.height / tall
    box = (
        left * across,
        top * down,
        min((left + width) * across, image.width),
        min((top + height) * down, image.height),
    )
    return image.resize((width, height), method, box=box)
