"""Which test images are right, a bit each, as the results hold them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def packed(right: ArrayLike) -> str:
    """One bit an image, in hexadecimal digits."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(text: str, count: int) -> NDArray[np.float64]:
    """1 where an image is right and 0 where it is not, (count,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(np.float64)
