"""Make figures that look alike, and turn them into bytes that are equal for equal content."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from convpeft.errors import OptionError
from convpeft.reporting.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2933"
SOFT = "#66727f"
GRID = "#e6e9ed"
# Okabe and Ito's palette, which readers with any colour vision can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a8588f"

DOTS_PER_INCH = 144


def new_figure(width: float, height: float) -> Figure:
    """Make an empty light figure, sizes in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09)
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout, facecolor="white")


def style_axes(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: bool = True) -> None:
    """Give axes the common look: two quiet spines, a horizontal grid, a title at the left."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=9, parse_math=False)
    axes.set_xlabel(x, fontsize=9, color=SOFT)
    axes.set_ylabel(y, fontsize=9, color=SOFT)
    axes.tick_params(colors=SOFT, labelsize=8.5, length=0, pad=5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b8c0c9")
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.8)


@contextmanager
def any_script() -> Generator[None]:
    """Draw names in any script without a warning: what the font lacks appears as boxes, and that is all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def figure_bytes(figure: Figure, *, form: str = "png") -> bytes:
    """Render a figure as "png" or "svg"; the bytes hold no time stamp and no version.

    Raises:
        OptionError: If the form is another.
    """
    import matplotlib

    if form not in ("png", "svg"):
        raise OptionError(f"figure: expected the form png or svg, got {form!r}. Name the file .png or .svg.")
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    stream = io.BytesIO()
    with any_script(), matplotlib.rc_context({"svg.hashsalt": "convpeft", "svg.fonttype": "path"}):
        figure.savefig(stream, format=form, metadata=metadata)
    return stream.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a .png or .svg file, as a whole or not at all.

    Raises:
        OptionError: If the suffix is another.
        RunError: If the file cannot be written.
    """
    write_whole(path, figure_bytes(figure, form=Path(path).suffix.lstrip(".").lower()))
