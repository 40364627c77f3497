"""Named augmentations of uint8 images, each sample drawn from its own seed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import convpeft._torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]
from convpeft.data.corruptions.names import SEVERITIES, read_names
from convpeft.errors import OptionError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Transform = Callable[[torch.Tensor], torch.Tensor]

PRESETS = {
    "none": "the images as they are",
    "light": "small shifts, turns, scales and slants, no flip: for characters",
    "flip": "shifts of up to an eighth and left-right flips: for CIFAR and natural images",
    "medical": "left-right flips, small turns, brightness and contrast",
    "strong": "RandAugment (two operations of strength 9) and left-right flips",
    "augmix": "shifts and flips, then AugMix: mixtures of mild operations, for robustness",
}
CORRUPT = "corrupt:"  # then names of corruptions: half of the images get one of them, of any severity
_COLOURS = ("medical", "strong", "augmix")  # and CORRUPT: on 1 or 3 channels


def check_augmentation(preset: str) -> None:
    """Check that there is such an augmentation: a preset, or "corrupt:" and names of corruptions.

    Raises:
        OptionError: If there is not; the nearest name is told.
    """
    if preset.startswith(CORRUPT):
        read_names(preset.removeprefix(CORRUPT))
    elif preset not in PRESETS:
        known = [*PRESETS, f"{CORRUPT}fog,rain"]
        raise OptionError(f"data.augment={preset!r}: is no augmentation. {nearest(preset, known)}")


def corruptions_of(preset: str) -> tuple[str, ...]:
    """The corruptions that an augmentation trains on; none for a preset."""
    return read_names(preset.removeprefix(CORRUPT)) if preset.startswith(CORRUPT) else ()


def build_transform(preset: str, size: tuple[int, int], channels: int) -> Transform | None:
    """Build the transform of an augmentation for uint8 images (channels, height, width), None for "none".

    Raises:
        OptionError: If the augmentation is unknown or cannot work on this number of channels.
    """
    from torchvision.transforms import v2

    check_augmentation(preset)
    if preset.startswith((*_COLOURS, CORRUPT)) and channels not in (1, 3):
        raise OptionError(f"augment='{preset}': works on 1 or 3 channels, not {channels}. Use 'light' or 'flip'.")
    bilinear = v2.InterpolationMode.BILINEAR
    flip = v2.RandomHorizontalFlip()
    if preset == "light":
        return v2.RandomAffine([-10.0, 10.0], translate=(0.08, 0.08), scale=(0.9, 1.1), shear=8, interpolation=bilinear)
    if preset in ("flip", "augmix"):
        padding = [max(1, size[1] // 8), max(1, size[0] // 8)]
        shift = v2.RandomCrop(size, padding=padding)
        return v2.Compose([shift, flip] if preset == "flip" else [shift, flip, _Mixed()])
    if preset.startswith(CORRUPT):
        return _Corrupted(corruptions_of(preset))
    if preset == "medical":
        jitter = v2.ColorJitter(brightness=0.2, contrast=0.2)
        return v2.Compose([flip, v2.RandomRotation([-10.0, 10.0], interpolation=bilinear), jitter])
    if preset == "strong":
        return v2.Compose([v2.RandAugment(interpolation=bilinear), flip])
    return None


@dataclass(frozen=True)
class _Mixed:
    """AugMix, by a generator that is seeded from torch's."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        from convpeft.data.augmix import augmix

        return _planes(augmix(_pixels(image), _generator()))


@dataclass(frozen=True)
class _Corrupted:
    """One image of two as it is, the other under one of the named corruptions, all severities alike."""

    names: tuple[str, ...]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        from convpeft.data.corruptions.corrupting import corrupt_with

        rng = _generator()
        if rng.random() < 0.5:
            return image
        name, severity = self.names[rng.integers(len(self.names))], SEVERITIES[rng.integers(len(SEVERITIES))]
        grey = bool((image == image[:1]).all())  # noise on a grey image has no colour
        corrupted = corrupt_with(_pixels(image[:1] if grey else image), name, severity, rng=rng)
        return _planes(corrupted).expand_as(image)


def _generator() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, ())))


def _pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).contiguous().numpy()


def _planes(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


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
