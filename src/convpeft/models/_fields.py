"""Read the fields of a record that comes from a file: every field, the right types, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from convpeft.errors import AdapterFileError

_LARGEST = 1e9


def fields_of(record: object, expected: tuple[str, ...], where: str) -> Mapping[str, object]:
    """Return the record as a mapping that has exactly the expected fields.

    Raises:
        AdapterFileError: If it is no mapping, or a field is missing or unknown.
    """
    if not isinstance(record, Mapping):
        raise AdapterFileError(f"{where}: expected a table of {', '.join(expected)}, got {shown(record)}.")
    fields = cast("Mapping[object, object]", record)
    missing = [name for name in expected if name not in fields]
    unknown = [shown(name) for name in fields if name not in expected]
    if missing or unknown:
        found = "; ".join(
            f"{word} {', '.join(names[:3])}" for word, names in (("missing", missing), ("unknown", unknown)) if names
        )
        raise AdapterFileError(
            f"{where}: expected exactly the fields {', '.join(expected)}, got {found}. "
            "Write the file again with this version of convpeft."
        )
    return cast("Mapping[str, object]", fields)


def shown(value: object) -> str:
    """Return the value's repr on one line of at most 60 characters.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_whole(value: object) -> bool:
    """Say whether the value is an int; True and False are none.

    >>> is_whole(3), is_whole(True), is_whole(3.0)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Say whether the value is an int or float of a size that a setting can have.

    >>> is_number(0.5), is_number(float("nan")), is_number(10**400), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
