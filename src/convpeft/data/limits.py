"""Refuse a file that claims to unpack into far more than it holds, before unpacking it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable

from convpeft.errors import DataError

# Real pictures pack 2 to 20 times; deflate reaches 1,032 on zeros.
_MAX_RATIO = 200
_ALWAYS_FINE = 64 << 20
_MAX_BYTES = 16 << 30


def check_expansion(where: str, claimed: int, stored: int) -> None:
    """Check that `claimed` bytes out of a file of `stored` bytes is something a real data set does.

    Raises:
        DataError: If it is above 16 GiB, or above 64 MiB and more than 200 times the file.
    """
    if claimed > _MAX_BYTES or (claimed > _ALWAYS_FINE and claimed > _MAX_RATIO * stored):
        raise DataError(
            f"{where}: claims to hold {claimed:,} bytes in a file of {stored:,}, which no real data set does. "
            "Get the file again from a source you trust."
        )


def check_packing(where: str, members: Iterable[zipfile.ZipInfo]) -> None:
    """Check that members of a zip are packed as data sets are.

    The other ways of packing give all that is in a piece at once, whatever the member claims to hold.

    Raises:
        DataError: If one is packed in another way than stored or deflated.
    """
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{where}: a member is packed in a way that no data set is (number {info.compress_type}). "
                "Pack it again with deflate."
            )
