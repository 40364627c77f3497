"""Find images that occur in more than one split, pixel for pixel."""

from __future__ import annotations

import hashlib

from convpeft.data.datasets import Dataset, ImageStore
from convpeft.data.images import ImageError


def find_duplicates(dataset: Dataset) -> list[tuple[str, str, str, str]]:
    """List the exact duplicates across splits by a digest of shape and decoded pixels.

    Each image of a later split (order: train, val, test) is listed once for each earlier split that holds a
    copy, so the length of the list counts leaks and not pairs. Pictures that cannot be read are passed over.

    Returns:
        (split_a, id_a, split_b, id_b), a the earlier one.
    """
    seen: list[tuple[str, dict[bytes, str]]] = []
    found: list[tuple[str, str, str, str]] = []
    for name, split in dataset.splits().items():
        first: dict[bytes, str] = {}
        for index, identity in enumerate(split.ids):
            digest = _digest(split.images, index)
            if digest is None:
                continue
            found += [(earlier, known[digest], name, identity) for earlier, known in seen if digest in known]
            first.setdefault(digest, identity)
        seen.append((name, first))
    return found


def _digest(images: ImageStore, index: int) -> bytes | None:
    try:
        image = images[index]
    except ImageError:
        return None
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
