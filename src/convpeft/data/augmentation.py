"""Named augmentations of uint8 images, each sample drawn from its own seed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

import torch

import convpeft._torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]
from convpeft.errors import OptionError, nearest

Transform = Callable[[torch.Tensor], torch.Tensor]

PRESETS = {
    "none": "the images as they are",
    "light": "small shifts, turns, scales and slants, no flip: for characters",
    "flip": "shifts of up to an eighth and left-right flips: for CIFAR and natural images",
    "medical": "left-right flips, small turns, brightness and contrast",
    "strong": "RandAugment (two operations of strength 9) and left-right flips",
}


def build_transform(preset: str, size: tuple[int, int], channels: int) -> Transform | None:
    """Build the transform of a preset for uint8 images (channels, height, width), None for "none".

    Raises:
        OptionError: If the preset is unknown or cannot work on this number of channels.
    """
    from torchvision.transforms import v2

    if preset not in PRESETS:
        raise OptionError(f"augment='{preset}': is no augmentation. {nearest(preset, PRESETS)}")
    if preset in ("medical", "strong") and channels not in (1, 3):
        raise OptionError(f"augment='{preset}': works on 1 or 3 channels, not {channels}. Use 'light' or 'flip'.")
    bilinear = v2.InterpolationMode.BILINEAR
    flip = v2.RandomHorizontalFlip()
    if preset == "light":
        return v2.RandomAffine([-10.0, 10.0], translate=(0.08, 0.08), scale=(0.9, 1.1), shear=8, interpolation=bilinear)
    if preset == "flip":
        padding = [max(1, size[1] // 8), max(1, size[0] // 8)]
        return v2.Compose([v2.RandomCrop(size, padding=padding), flip])
    if preset == "medical":
        jitter = v2.ColorJitter(brightness=0.2, contrast=0.2)
        return v2.Compose([flip, v2.RandomRotation([-10.0, 10.0], interpolation=bilinear), jitter])
    if preset == "strong":
        return v2.Compose([v2.RandAugment(interpolation=bilinear), flip])
    return None


def augment(images: torch.Tensor, transform: Transform, keys: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """Transform each image by random numbers that depend on its key alone; the global state is put back.

    Args:
        images: uint8 (batch, channels, height, width).
        transform: From `build_transform`.
        keys: For each image (seed, epoch, index).

    Returns:
        uint8, the same shape.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        augmented: list[torch.Tensor] = []
        for image, key in zip(images, keys, strict=True):
            # The default generator of the CPU only: torch.manual_seed would reseed the GPU too.
            generator.manual_seed(_mix(key))
            augmented.append(transform(image))
    finally:
        generator.set_state(state)
    return torch.stack(augmented)


def _mix(key: tuple[int, int, int]) -> int:
    digest = hashlib.blake2b(struct.pack("<3q", *key), digest_size=4).digest()
    return int.from_bytes(digest, "little")
