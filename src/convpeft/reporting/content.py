"""What a report is made of: plain records that any run, comparison or demo can fill."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """Paragraphs under a heading ("" for none)."""

    title: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class KeyFigure:
    """One number worth reading first: its name, the number with its unit, and a note below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """The numbers worth reading first, side by side."""

    items: tuple[KeyFigure, ...]


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are set flush right.

    Attributes:
        title: Its heading, "" for none.
        headers: One a column.
        rows: One cell a column; whole numbers get thousands separators, None becomes a dash.
        caption: A sentence above it.
        emphasis: Number of the row to set in bold.
        folded: Whether it is shown only when opened.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    caption: str = ""
    emphasis: int | None = None
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        title: Its heading, "" for none.
        caption: A sentence above it.
        image: The bytes of a PNG or SVG file.
        alternative: What it shows, for those who cannot see it. Default: the title.
    """

    title: str
    caption: str
    image: bytes
    alternative: str = ""


@dataclass(frozen=True)
class Code:
    """Text to be read letter by letter: a command, a recipe.

    Attributes:
        title: Its heading.
        text: The lines.
        caption: A sentence above it.
        folded: Whether it is shown only when opened.
    """

    title: str
    text: str
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Notes:
    """A list of remarks; those of a warning stand out."""

    title: str
    items: tuple[str, ...]
    warning: bool = False


Section = Text | KeyFigures | Table | Figure | Code | Notes


@dataclass(frozen=True)
class ReportContent:
    """A whole report.

    Attributes:
        title: The heading of the page.
        summary: The result in a sentence or two.
        sections: In reading order; those with a title are listed at the top.
        subtitle: A line above the title: what kind of report, which run.
        footer: A line at the end: versions, where the files are.
    """

    title: str
    summary: str
    sections: tuple[Section, ...]
    subtitle: str = ""
    footer: str = ""
