"""Which test images each severity of each corruption has.

With `parts` above one, a test image has only one in so many of the corrupted forms, and the next image others: many
images tell more of a mean over corruptions than all the forms of a few, for the same work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convpeft.data.corruptions import ALL
from convpeft.data.corruptions.names import SEVERITIES

Cells = dict[tuple[str, int], NDArray[np.int64]]


def cells_of(labels: NDArray[np.int64], parts: int, names: Sequence[str]) -> Cells:
    """Of each severity of each corruption the test images, ascending: one in `parts` of each class, in turn.

    With 20 parts an image has five forms: one of each severity, of five corruptions.
    """
    places = np.zeros(len(labels), dtype=np.int64)  # of an image within its class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = np.arange(len(members))
    return {
        (name, severity): np.flatnonzero((places - ALL.index(name) - 2 * severity) % parts == 0)
        for name in names
        for severity in SEVERITIES
    }
