"""Write a report as one HTML file that holds everything it shows and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from convpeft.errors import OptionError
from convpeft.reporting.canvas import DOTS_PER_INCH
from convpeft.reporting.content import Figure, ReportContent, Table
from convpeft.reporting.wording import format_count, format_number, printable
from convpeft.reporting.writing import write_whole

_PNG = b"\x89PNG\r\n\x1a\n"
# A number as this library writes it: sign, digits, then at most a unit, an interval or a deviation.
_NUMERIC = re.compile(r"[-+<~]?\s?\d[\d,.]*(\s?(%|s|ms|min|h|B|[KMGT]iB|x))?(\s*[\[(±\d].*)?")


def write_report(path: str | Path, report: ReportContent) -> None:
    """Write a report to one self-contained file: no script, no outside address, images inline.

    Names of classes, files and runs are untrusted: they are escaped, and the page's content security policy allows
    its own style sheet and inline images only.

    Args:
        path: The .html file, replaced as a whole.
        report: What it says.

    Raises:
        OptionError: If a table's rows and headers differ in length, or an image is neither PNG nor SVG.
        RunError: If the file cannot be written.
    """
    write_whole(path, render_report(report).encode())


def render_report(report: ReportContent) -> str:
    """Give the HTML text of a report.

    Raises:
        OptionError: If a table's rows and headers differ in length, or an image is neither PNG nor SVG.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("convpeft.reporting") / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        sections=[(f"section-{number}", _kind(section), section) for number, section in enumerate(report.sections, 1)],
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        image_address=_image_address,
        image_width=_image_width,
        cells=_cells,
        numeric_columns=_numeric_columns,
    )


def _kind(section: object) -> str:
    return type(section).__name__.lower()


def _cleaned(value: Any) -> str:
    """Make a value fit to show; what was marked as markup (the style sheet, nothing else) passes as it is."""
    return value if hasattr(value, "__html__") else printable(str(value), keep="\n\t")


def _image_address(figure: Figure) -> str:
    head = figure.image[:256].lstrip()
    if figure.image.startswith(_PNG):
        kind = "png"
    elif head.startswith((b"<?xml", b"<svg")):
        kind = "svg+xml"
    else:
        raise OptionError(
            f"report: expected the figure '{figure.title}' as PNG or SVG bytes, got bytes that start with "
            f"{figure.image[:8]!r}. Pass figure_bytes(figure)."
        )
    return f"data:image/{kind};base64,{base64.b64encode(figure.image).decode()}"


def _image_width(figure: Figure) -> int | None:
    """Give the width at which every figure's text has the same size: 96 pixels an inch, as CSS counts."""
    if not figure.image.startswith(_PNG):
        return None
    return round(int.from_bytes(figure.image[16:20]) * 96 / DOTS_PER_INCH)


def _cells(table: Table) -> list[list[str]]:
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.headers):
            raise OptionError(
                f"report: table '{table.title}', row {number}: expected {len(table.headers)} cells as there are "
                f"headers, got {len(row)}. Use None for an empty cell."
            )
    return [[_cell(value) for value in row] for row in table.rows]


def _cell(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return format_number(value)
    return value if isinstance(value, str) else format_count(value)


def _numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Tell which columns hold numbers; the first names its row, even by a number."""
    dash = format_count(None)
    return [
        place > 0 and all(cell == dash or _NUMERIC.fullmatch(cell) for cell in column)
        for place, column in enumerate(zip(*rows, strict=True))
    ]
