"""Draw accuracy by corruption and severity, and show what corruptions look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convpeft.errors import OptionError
from convpeft.reporting.canvas import INK, SOFT, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convpeft.evaluation.robustness import Robustness

_DARK = 0.62  # from this share of the scale on, a cell is too dark for dark text
_LARGE = 96  # pixels of a picture on the contact sheet at most
_GAP = 2


def plot_robustness(robustness: Robustness) -> Figure:
    """Draw a table of accuracies in shades of blue: a row a corruption, a column a severity, and the mean at the right.

    The first row is the accuracy on images as they are, where it is known.
    """
    table = robustness.accuracies
    rows = np.column_stack([table, table.mean(axis=1)])
    names = [words(name) for name in robustness.names]
    clean = robustness.clean_accuracy
    if clean is not None:
        rows = np.vstack([np.full(rows.shape[1], clean.accuracy), rows])
        names = ["clean", *names]
    figure = new_figure(2.3 + 0.62 * rows.shape[1], 1.0 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    style_axes(axes, x="severity", grid=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(rows.shape[1]), labels=[*map(str, robustness.severities), "mean"])
    axes.set_yticks(range(len(rows)), labels=names)
    for (row, column), share in np.ndenumerate(rows):
        colour = "white" if share > _DARK else INK
        axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.axvline(rows.shape[1] - 1.5, color="white", linewidth=3)
    if clean is not None:
        axes.axhline(0.5, color="white", linewidth=3)
    return figure


def plot_contact_sheet(rows: Mapping[str, Sequence[NDArray[np.uint8]]], columns: Sequence[str]) -> Figure:
    """Lay out pictures of one size in a table: a row a corruption, a column a severity.

    Args:
        rows: For each name its pictures, uint8 (height, width, 1 or 3), one a column.
        columns: What stands above them.

    Raises:
        OptionError: If there is no row, or one has not a picture for each column.
    """
    if not rows or any(len(pictures) != len(columns) for pictures in rows.values()):
        raise OptionError(
            f"plot_contact_sheet: expected {len(columns)} pictures a row and one row or more, got "
            f"{[len(pictures) for pictures in rows.values()]}. Pass one picture for each column."
        )
    first = next(iter(rows.values()))[0]
    step = max(1, -(-max(first.shape[:2]) // _LARGE))  # large pictures are shown by every second or third pixel
    sheet = np.concatenate([np.concatenate([_framed(p[::step, ::step]) for p in row], axis=1) for row in rows.values()])
    height, width = (sheet.shape[0] / len(rows), sheet.shape[1] / len(columns))
    figure = new_figure(1.6 + 0.62 * len(columns), 0.5 + 0.62 * len(rows) * height / width)
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    style_axes(axes, grid=False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.tick_top()
    axes.set_xticks([width * (number + 0.5) for number in range(len(columns))], labels=list(columns))
    axes.set_yticks([height * (number + 0.5) for number in range(len(rows))], labels=[words(name) for name in rows])
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    return figure


def words(name: str) -> str:
    """A corruption's name for people.

    >>> words("jpeg_compression")
    'jpeg compression'
    """
    return name.replace("_", " ")


def _framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of three channels with a white margin."""
    colour = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    return np.pad(colour, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
