"""Find images that occur in more than one split, pixel for pixel."""

from __future__ import annotations

import hashlib

from convpeft.data.datasets import Dataset, ImageStore
from convpeft.data.images import ImageError, broken_pictures


def find_duplicates(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    """List the exact duplicates across splits by a digest of shape and decoded pixels.

    Each image of a later split (order: train, val, test) is listed once for each earlier split that holds a
    copy, so the length of the list counts leaks and not pairs.

    Returns:
        (split_a, id_a, split_b, id_b), a the earlier one.

    Raises:
        DataError: If pictures cannot be read; up to five are named and all are counted.
    """
    seen: list[tuple[str, dict[bytes, str]]] = []
    found: list[tuple[str, str, str, str]] = []
    broken: list[str] = []
    for name, split in dataset.splits().items():
        first: dict[bytes, str] = {}
        for index, identity in enumerate(split.ids):
            try:
                digest = _digest(split.images, index)
            except ImageError as error:
                broken.append(f"{identity} {error.fault}")
                continue
            found += [(earlier, known[digest], name, identity) for earlier, known in seen if digest in known]
            first.setdefault(digest, identity)
        seen.append((name, first))
    if broken:
        raise broken_pictures(f"data '{dataset.spec}'", broken, sum(map(len, dataset.splits().values())))
    return found


def _digest(images: ImageStore, index: int) -> bytes:
    image = images[index]
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
