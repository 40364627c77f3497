"""What the corruptions are called: those of the published benchmarks, and rain."""

from __future__ import annotations

from convpeft.errors import OptionError, nearest

# In the order of the published tables, under the names of the published files.
COMMON = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
RAIN = "rain"
ALL = (*COMMON, *EXTRA, RAIN)
SEVERITIES = (1, 2, 3, 4, 5)

_GROUPS = {"all": ALL, "common": COMMON, "extra": EXTRA}


def read_names(text: str) -> tuple[str, ...]:
    """Names between commas, each once and in the order of `ALL`; "all", "common" and "extra" stand for several.

    Raises:
        OptionError: If one is no corruption; the nearest name is told.

    >>> read_names("rain, fog")
    ('fog', 'rain')
    """
    wanted: set[str] = set()
    for word in text.split(","):
        name = word.strip().replace("-", "_")
        if name not in ALL and name not in _GROUPS:
            raise OptionError(f"corruption {word.strip()!r} does not exist. {nearest(name, [*ALL, *_GROUPS])}")
        wanted.update(_GROUPS.get(name, (name,)))
    return tuple(name for name in ALL if name in wanted)


def read_severities(text: str) -> tuple[int, ...]:
    """Severities between commas, each once, in order.

    Raises:
        OptionError: If one is not 1, 2, 3, 4 or 5.

    >>> read_severities("5,1")
    (1, 5)
    """
    wanted = {word.strip() for word in text.split(",")}
    unknown = wanted - {str(severity) for severity in SEVERITIES}
    if unknown:
        raise OptionError(f"severity {min(unknown)!r} does not exist. Write some of 1,2,3,4,5, the mildest first.")
    return tuple(severity for severity in SEVERITIES if str(severity) in wanted)
