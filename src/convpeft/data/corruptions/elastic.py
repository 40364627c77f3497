"""An image on rubber: stretched and slanted as a whole, then shifted a little, otherwise at each place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from convpeft.data.corruptions.pixels import Pixels


def elastic_transform(image: Pixels, constants: Sequence[float], rng: np.random.Generator) -> Pixels:
    """Move three corners at random and everything with them, then each pixel by a smooth random field.

    Args:
        image: (height, width, channels).
        constants: Strength of the field, its smoothness, and how far a corner moves at most, as shares of the side.
        rng: Where corners and field come from.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    strength, sigma, reach = (share * side for share in constants)
    middle, arm = np.array([height // 2, width // 2], dtype=np.float64), side // 3
    corners = middle + arm * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])  # (row, column)
    moved = corners + rng.uniform(-reach, reach, size=corners.shape)
    # rows of (row, column, 1): where each place of the new image is taken from
    back = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), corners, rcond=None)[0]
    places = np.indices((height, width)).astype(np.float64)
    slanted: Pixels = np.tensordot(back[:2].T, places, axes=1) + back[2][:, None, None]
    stretched = _taken(image, slanted, mode="mirror")
    if not strength:
        return stretched
    field = rng.uniform(-1, 1, size=(2, height, width))
    shifts: Pixels = ndimage.gaussian_filter(field, (0, sigma, sigma), mode="reflect", truncate=3.0)
    return _taken(stretched, places + strength * shifts, mode="reflect")


def _taken(image: Pixels, places: Pixels, *, mode: str) -> Pixels:
    """The image at places (2, height, width), between pixels linearly."""
    planes = [ndimage.map_coordinates(plane, places, order=1, mode=mode) for plane in np.moveaxis(image, 2, 0)]
    return np.stack(planes, axis=2)
