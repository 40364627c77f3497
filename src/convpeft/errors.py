"""The one base error of the library, its few children, and the form of their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvpeftError(Exception):
    """Base of every error that convpeft raises on purpose: one line that says where, what and what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(plainly(message))


class OptionError(ConvpeftError):
    """An option, name or recipe key is unknown, of the wrong type, or out of range."""


class ModelError(ConvpeftError):
    """The model cannot be built, adapted, merged or used in the way that was asked."""


class AdapterFileError(ConvpeftError):
    """An adapter file is missing, damaged, or made for another base."""


class DataError(ConvpeftError):
    """A data set or an image cannot be found, read or used."""


class RunError(ConvpeftError):
    """A run cannot start, go on or be resumed."""


def plainly(text: object) -> str:
    r"""Any text on one line of printable characters.

    >>> plainly("first\nsecond \x1b[2J")
    'first second \\x1b[2J'
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(line.split()))


def one_line(text: object, most: int = 300) -> str:
    """The text of an error or a path as one printable line of at most so many characters."""
    return plainly(text)[:most]


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, as a sentence that ends an error message.

    >>> nearest("lroa", ["lora", "bitfit"])
    "Did you mean 'lora'? Known: bitfit, lora."
    >>> nearest("xyz", ["lora"])
    'Known: lora.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = f"Known: {', '.join(names)}."
    return f"Did you mean '{close[0]}'? {listed}" if close else listed
