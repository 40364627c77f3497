"""Write tables as CSV that a spreadsheet opens without running anything."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convpeft.reporting.wording import printable
from convpeft.reporting.writing import write_whole

# Spreadsheets take these first characters, the full-width ones too, for the start of a formula.
_FORMULA_STARTS = "=+-@\uff1d\uff0b\uff0d\uff20"


def write_confusion_csv(path: str | Path, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Write a confusion matrix: a row a true class, a column a predicted class.

    Args:
        path: The file, replaced as a whole.
        matrix: Counts, (K, K).
        classes: K names; one that looks like a formula gets a leading apostrophe.

    Raises:
        RunError: If the file cannot be written.
    """
    names = [_inert(name) for name in classes]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["true class", *names])
    for name, row in zip(names, matrix.tolist(), strict=True):
        writer.writerow([name, *row])
    write_whole(path, stream.getvalue().encode())


def _inert(name: str) -> str:
    clean = printable(name)
    return f"'{clean}" if clean.lstrip(" \u3000�").startswith(tuple(_FORMULA_STARTS)) else clean
