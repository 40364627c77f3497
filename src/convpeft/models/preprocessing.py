"""How an image becomes the numbers that a model was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from convpeft.errors import AdapterFileError, OptionError
from convpeft.models._fields import fields_of, is_number, is_whole, shown

Resize = Literal["crop", "squash", "pad"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZES = ("crop", "squash", "pad")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
MAX_SIDE = 8192
MAX_CHANNELS = 4


@dataclass(frozen=True)
class Preprocessing:
    """The deterministic way from an image to a model's input: ``(resize(image) / 255 - mean) / std``.

    Args:
        size: Height and width of the input in pixels, 1 to 8192 each.
        resize: "crop" resizes the shorter side to size / crop and cuts the centre out, "squash" ignores the aspect
            ratio, "pad" fits the whole image in and fills the borders.
        crop: Share of the resized side that the centre crop keeps, in (0, 1].
        mean: One number a channel, subtracted from pixel values scaled to 0..1.
        std: One positive number a channel.
        channels: Channels of the input, 1 to 4.
        interpolation: "bilinear", "bicubic" or "nearest".

    Raises:
        OptionError: If a value is of the wrong type or out of range.
    """

    size: tuple[int, int] = (224, 224)
    resize: Resize = "crop"
    crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Check every field, so that a Preprocessing that exists is one that can be used."""
        checks: tuple[tuple[str, object, bool, str], ...] = (
            (
                "size",
                self.size,
                _is_tuple(self.size, 2) and all(is_whole(side) and 1 <= side <= MAX_SIDE for side in self.size),
                f"height and width as whole numbers from 1 to {MAX_SIDE}",
            ),
            ("resize", self.resize, self.resize in RESIZES, f"one of {', '.join(RESIZES)}"),
            ("crop", self.crop, is_number(self.crop) and 0 < self.crop <= 1, "a number in (0, 1]"),
            (
                "channels",
                self.channels,
                is_whole(self.channels) and 1 <= self.channels <= MAX_CHANNELS,
                f"a whole number from 1 to {MAX_CHANNELS}",
            ),
            (
                "mean",
                self.mean,
                _is_tuple(self.mean, self.channels) and all(is_number(value) for value in self.mean),
                f"one finite number for each of the {shown(self.channels)} channels",
            ),
            (
                "std",
                self.std,
                _is_tuple(self.std, self.channels) and all(is_number(value) and value > 0 for value in self.std),
                f"one positive number for each of the {shown(self.channels)} channels",
            ),
            (
                "interpolation",
                self.interpolation,
                self.interpolation in INTERPOLATIONS,
                f"one of {', '.join(INTERPOLATIONS)}",
            ),
        )
        for name, value, holds, expected in checks:
            if not holds:
                raise OptionError(f"preprocessing.{name}: expected {expected}, got {shown(value)}.")

    def for_channels(self, channels: int) -> Preprocessing:
        """Return the same preprocessing for another number of channels.

        One channel gets the averages of mean and std; more repeat them cyclically, as the first convolution's
        weights are.

        >>> Preprocessing(mean=(0.25, 0.5, 0.75), std=(0.5, 0.5, 0.5)).for_channels(1).mean
        (0.5,)
        """
        if channels == self.channels:
            return self
        return dataclasses.replace(
            self, channels=channels, mean=_spread(self.mean, channels), std=_spread(self.std, channels)
        )

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain lists, numbers and strings, ready for JSON or TOML."""
        return {
            name: list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, record: object, *, where: str = "preprocessing") -> Preprocessing:
        """Build from what a file holds, checking everything.

        Args:
            record: What ``to_dict`` returned, read back.
            where: The name that errors begin with, for example the file's path.

        Raises:
            AdapterFileError: If a field is missing, unknown, of the wrong type or out of range.
        """
        names = tuple(field.name for field in dataclasses.fields(cls))
        fields = {name: _frozen(value) for name, value in fields_of(record, names, where).items()}
        try:
            return cls(**fields)  # pyright: ignore[reportArgumentType]  # __post_init__ checks the types
        except OptionError as error:
            raise AdapterFileError(f"{where}: {error}") from None


def _is_tuple(value: object, length: object) -> bool:
    return isinstance(value, tuple) and len(cast("tuple[object, ...]", value)) == length


def _frozen(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(channels))
