"""Turn numbers and names into text that reads alike in the terminal, in figures and in the report."""

from __future__ import annotations

import unicodedata

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_NOTHING = "\u2013"
# Control and format characters, line separators and lone surrogates: invisible, reordering, or unencodable.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# The two joiners belong to the spelling of Persian, Hindi and emoji.
_JOINERS = "\u200c\u200d"


def format_count(number: int | None) -> str:
    """Write a whole number with thousands separators.

    >>> format_count(12345)
    '12,345'
    """
    return _NOTHING if number is None else f"{number:,}"


def format_percent(fraction: float | None, *, digits: int = 1) -> str:
    """Write a fraction as percent.

    >>> format_percent(0.97312)
    '97.3 %'
    """
    return _NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def format_interval(fraction: float, interval: tuple[float, float], *, digits: int = 1) -> str:
    """Write a fraction and the interval around it as percent.

    >>> format_interval(0.97312, (0.968, 0.977))
    '97.3 % [96.8, 97.7]'
    """
    low, high = interval
    return f"{format_percent(fraction, digits=digits)} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def format_share(part: int, whole: int) -> str:
    """Write a part of a whole as percent with two significant digits, so that small shares do not become 0.

    >>> format_share(1234, 11_200_000), format_share(5, 8), format_share(7, 7)
    ('0.011 %', '62 %', '100 %')
    """
    if whole == 0:
        return _NOTHING
    percent = 100 * part / whole
    digits = 0 if percent >= 10 or percent == 0 else 1
    while 0 < percent < 10 ** (1 - digits) and digits < 6:
        digits += 1
    return f"{percent:.{digits}f} %"


def format_number(number: float | None, *, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals.

    >>> format_number(0.12345)
    '0.123'
    """
    return _NOTHING if number is None else f"{number:.{digits}f}"


def format_bytes(size: int | None) -> str:
    """Write a size in the unit that suits it (1 KiB = 1024 B).

    >>> format_bytes(512), format_bytes(1536), format_bytes(164 * 1024), format_bytes(5 * 1024**3)
    ('512 B', '1.5 KiB', '164 KiB', '5.0 GiB')
    """
    if size is None:
        return _NOTHING
    amount, unit = float(size), 0
    # 1023.6 KiB would round to 1024 KiB.
    while amount >= (1024 if unit == 0 else 1023.5) and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.{1 if unit and amount < 99.95 else 0}f} {_UNITS[unit]}"


def format_duration(seconds: float | None) -> str:
    """Write a time in the two largest units that suit it.

    >>> format_duration(0.034), format_duration(9.87), format_duration(59.7), format_duration(3725)
    ('34 ms', '9.9 s', '1 min 00 s', '1 h 02 min')
    """
    if seconds is None:
        return _NOTHING
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: str, *, limit: int | None = None, keep: str = "") -> str:
    r"""Replace what cannot be shown, encoded or trusted to stay in place by U+FFFD.

    Names of classes, files and runs come from other people's disks.

    Args:
        text: Any string, lone surrogates and control characters included.
        limit: At most this many characters, an ellipsis in the middle. Default: no limit.
        keep: Control characters that stay, such as "\n".

    >>> printable("cat\x00dog\u202e"), printable("a long name", limit=6)
    ('cat�dog�', 'a l…me')
    """
    kept = keep + _JOINERS
    clean = "".join(
        character if character in kept or unicodedata.category(character) not in _UNPRINTABLE else "�"
        for character in text
    )
    if limit is None or len(clean) <= limit:
        return clean
    # The end stays: long names often differ only there.
    return f"{clean[: limit // 2]}…{clean[len(clean) - (limit - 1) // 2 :]}"
