"""Quote what a file says, or why a library could not read it, on one short line."""

from __future__ import annotations

from collections.abc import Iterable

from convpeft.errors import DataError, plainly

_LONGEST = 120  # characters of a name
_LONGEST_REASON = 200


def quoted(text: object) -> str:
    r"""A name from a file in quotes, with control characters as escapes.

    >>> print(quoted("cat"), quoted("a\nb"), quoted("\x1b[2J"))
    'cat' 'a\nb' '\x1b[2J'
    """
    shown = repr(str(text))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}...'"


def reason(error: BaseException) -> str:
    """Why something failed, on one line; the error's name where it says nothing itself.

    >>> reason(KeyError()), reason(ValueError("no good"))
    ('KeyError', 'no good')
    """
    line = plainly(error)
    return (
        line if 0 < len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..." if line else type(error).__name__
    )


def check_names(where: str, classes: Iterable[str]) -> None:
    """Check that every class name can be shown and saved.

    Raises:
        DataError: If one is empty or holds control characters.
    """
    for name in classes:
        if not name or not name.isprintable():
            raise DataError(f"{where}: class {quoted(name)} is not printable text. Rename the class.")
