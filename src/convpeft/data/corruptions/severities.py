"""How strong each corruption is at severities 1 to 5: the constants of CIFAR-10-C and those of ImageNet-C.

Each entry is what the corruption's own function takes, in its order. Lengths are pixels, as they were published, but
those of elastic_transform are shares of the image's side, and pixelate's is a share of the size. Rain is not in the
published sets: its constants are ours.

Source:
    D. Hendrycks and T. Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR 2019, arXiv 1903.12261; the constants are those of the programs that made the published files.
"""

from __future__ import annotations

from convpeft.errors import OptionError, nearest

Constants = tuple[float, ...]
Levels = tuple[Constants, Constants, Constants, Constants, Constants]

LARGEST_CIFAR = 64  # pixels: a larger image takes the constants of ImageNet-C


def _ones(first: float, second: float, third: float, fourth: float, fifth: float) -> Levels:
    """Five severities of one number each."""
    return (first,), (second,), (third,), (fourth,), (fifth,)


_CIFAR: dict[str, Levels] = {
    "gaussian_noise": _ones(0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _ones(500, 250, 100, 75, 50),
    "impulse_noise": _ones(0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": _ones(0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _ones(0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": _ones(0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _ones(80, 65, 58, 50, 40),
    "speckle_noise": _ones(0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": _ones(0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "rain": (
        (0.015, 5, 0.5, 0.05),
        (0.025, 6, 0.6, 0.09),
        (0.035, 7, 0.7, 0.14),
        (0.050, 8, 0.8, 0.19),
        (0.065, 9, 0.9, 0.25),
    ),
}

# 244 where the image has 224: so it was published, for images of one size.
_ELASTIC = 244 / 224

_IMAGENET: dict[str, Levels] = {
    "gaussian_noise": _ones(0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": _ones(60, 25, 12, 5, 3),
    "impulse_noise": _ones(0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": _ones(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _ones(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (
        (2 * _ELASTIC, 0.7 * _ELASTIC, 0.1 * _ELASTIC),
        (2 * _ELASTIC, 0.08 * _ELASTIC, 0.2 * _ELASTIC),
        (0.05 * _ELASTIC, 0.01 * _ELASTIC, 0.02 * _ELASTIC),
        (0.07 * _ELASTIC, 0.01 * _ELASTIC, 0.02 * _ELASTIC),
        (0.12 * _ELASTIC, 0.01 * _ELASTIC, 0.02 * _ELASTIC),
    ),
    "pixelate": _ones(0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": _ones(25, 18, 15, 10, 7),
    "speckle_noise": _ones(0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": _ones(1, 2, 3, 4, 6),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    "rain": (
        (0.006, 14, 0.5, 0.08),
        (0.010, 18, 0.6, 0.14),
        (0.014, 22, 0.7, 0.20),
        (0.018, 26, 0.8, 0.27),
        (0.022, 30, 0.9, 0.34),
    ),
}

TABLES = {"cifar": _CIFAR, "imagenet": _IMAGENET}


def choose_table(size: tuple[int, int], name: str = "auto") -> str:
    """Say whose constants images of a size take: "cifar" up to 64 pixels a side, "imagenet" above.

    Args:
        size: (height, width).
        name: "cifar" or "imagenet" to have one whatever the size.

    Raises:
        OptionError: If the name is another.
    """
    if name == "auto":
        return "cifar" if max(size) <= LARGEST_CIFAR else "imagenet"
    if name not in TABLES:
        raise OptionError(f"severity table {name!r} does not exist. {nearest(name, ['auto', *TABLES])}")
    return name
