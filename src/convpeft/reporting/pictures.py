"""Draw the confusion matrix and a gallery of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convpeft.errors import OptionError
from convpeft.reporting.canvas import INK, SOFT, new_figure, style_axes
from convpeft.reporting.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Counts are written into the cells up to this many classes, names on the axes up to the next.
_MOST_COUNTED = 15
_MOST_NAMED = 100
# From these shares on, a cell is too dark for dark text.
_DARK_RIGHT, _DARK_MISTAKE = 0.55, 0.28
_LARGE_IMAGE = 96
_MOST_COLUMNS = 8
# A class half of whose images go astray is as bad as the colour scale gets.
_DARKEST_MISTAKE = 0.5


def plot_confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix whose rows are shares of the true class: right answers blue, mistakes orange.

    The shades of the mistakes grow with the square root of their share, so that rare ones stay visible, and are
    explained beside the matrix where no counts are.

    Args:
        matrix: Counts by true (row) and predicted (column) class, (K, K). They are written into the cells for
            K <= 15.
        classes: K names.

    Raises:
        OptionError: If the matrix is not (K, K).
    """
    size = len(classes)
    if size == 0 or matrix.shape != (size, size):
        raise OptionError(
            f"plot_confusion: expected a matrix ({size}, {size}) for {size} classes, got {matrix.shape}. "
            "Pass one row and one column a class."
        )
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, PowerNorm

    support = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(support, 1)
    right = ScalarMappable(Normalize(0, 1), matplotlib.colormaps["Blues"])
    wrong = ScalarMappable(PowerNorm(0.5, 0, _DARKEST_MISTAKE, clip=True), matplotlib.colormaps["Oranges"])
    colours = np.where(np.eye(size, dtype=bool)[..., None], right.to_rgba(shares), wrong.to_rgba(shares))
    colours[shares == 0] = (1, 1, 1, 1)

    counted = size <= _MOST_COUNTED
    side = max(3.9, 2.6 + 0.42 * size) if counted else min(11.0, 5.2 + 0.1 * size)
    figure = new_figure(side if counted else side + 1.0, side)
    axes = figure.subplots()
    axes.imshow(colours, interpolation="nearest")
    style_axes(axes, x="predicted class", y="true class", grid=False)
    axes.spines["bottom"].set_visible(False)
    _name_axes(axes, classes)
    if counted:
        _write_counts(axes, matrix, shares)
        return figure
    bar = figure.colorbar(wrong, ax=axes, shrink=0.4, aspect=22, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.5], labels=["0 %", "1 %", "5 %", "10 %", "20 %", "50 %"])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=SOFT, length=0)
    bar.set_label("share of the true class mistaken", fontsize=8.5, color=SOFT)
    return figure


def _name_axes(axes: Axes, classes: Sequence[str]) -> None:
    size = len(classes)
    if size > _MOST_NAMED:
        return
    names = [printable(name, limit=24) for name in classes]
    text = 8.5 if size <= 26 else 7.5 if size <= 62 else 4.5
    upright = max(len(name) for name in names) <= 3
    axes.set_xticks(range(size), names, rotation=0 if upright else 90, fontsize=text, color=INK, parse_math=False)
    axes.set_yticks(range(size), names, fontsize=text, color=INK, parse_math=False)
    # A light lattice leads the eye from a cell to its names.
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e3e7eb", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(matrix):
        dark = shares[row, column] > (_DARK_RIGHT if row == column else _DARK_MISTAKE)
        axes.text(
            column,
            row,
            f"{matrix[row, column]:,}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else INK,
        )


def plot_gallery(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> Figure:
    """Draw images in a grid, each above its caption.

    Args:
        images: uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); at least one.
        captions: One an image; a line break is kept, a long line is cut.

    Raises:
        OptionError: If there are no images, or not one caption for each.
    """
    if len(images) == 0 or len(images) != len(captions):
        raise OptionError(
            f"plot_gallery: expected at least one image and one caption each, got {len(images)} images and "
            f"{len(captions)} captions. Leave the gallery out when there is nothing to show."
        )
    rows = math.ceil(len(images) / _MOST_COLUMNS)
    columns = max(4, math.ceil(len(images) / rows))
    figure = new_figure(1.25 * columns, 1.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        small = max(pixels.shape[:2]) < _LARGE_IMAGE
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
        lines = "\n".join(printable(line, limit=20) for line in caption.split("\n")[:3])
        axes.text(
            0.5, -0.06, lines, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=INK, parse_math=False
        )
    return figure
