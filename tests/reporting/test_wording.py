import pytest

from convpeft.reporting import (
    format_bytes,
    format_count,
    format_duration,
    format_interval,
    format_number,
    format_percent,
    format_share,
    printable,
)


@pytest.mark.parametrize("function", [format_count, format_percent, format_number, format_bytes, format_duration])
def test_nothing_is_a_dash(function):
    assert function(None) == "\u2013"


def test_interval_is_percent_in_brackets():
    assert format_interval(0.97312, (0.968, 0.977)) == "97.3 % [96.8, 97.7]"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 99.96, "100 KiB"),
        (1024 * 1023.4, "1023 KiB"),
        (1024 * 1023.6, "1.0 MiB"),
        (3 * 1024**5, "3072 TiB"),
    ],
)
def test_bytes_change_unit_where_rounding_would(size, text):
    assert format_bytes(int(size)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7199, "2 h 00 min"),
    ],
)
def test_duration_changes_unit_where_rounding_would(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "0 %"),
        (1, 10, "10 %"),
        (98, 1000, "9.8 %"),
        (5, 11_000, "0.045 %"),
        (1, 10**9, "0.000000 %"),
        (3, 0, "\u2013"),
    ],
)
def test_share_keeps_two_significant_digits(part, whole, text):
    assert format_share(part, whole) == text


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\u202e", "\u2066", "\udcff", "\u2028", "\u200b", "\n"])
def test_printable_replaces_what_misleads_or_cannot_be_encoded(character):
    assert printable(f"a{character}b") == "a\ufffdb"


@pytest.mark.parametrize("text", ["cat", "日本語", "می‌خواهم", "<script>", "a b", "🐈"])
def test_printable_leaves_names_alone(text):
    assert printable(text) == text


def test_printable_keeps_what_it_is_told_to():
    assert printable("a\nb\tc\x00", keep="\n\t") == "a\nb\tc\ufffd"


@pytest.mark.parametrize(("limit", "text"), [(9, "class 101"), (8, "clas…101"), (3, "c…1")])
def test_printable_cuts_the_middle(limit, text):
    assert printable("class 101", limit=limit) == text
