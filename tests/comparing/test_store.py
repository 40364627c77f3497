"""Results survive kills: lines are whole, the last of a key counts, and what was cut off is none."""

import pytest

from convpeft.comparing.store import append_result, read_results
from convpeft.errors import RunError


def test_torn_last_line_is_none_and_is_cut_off_by_the_next(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"key": "a", "status": "done"})
    with path.open("ab") as stream:
        stream.write(b'{"key": "b", "sta')
    assert read_results(path).keys() == {"a"}
    append_result(path, {"key": "c"})
    assert read_results(path).keys() == {"a", "c"}
    assert path.read_bytes().count(b"\n") == len(path.read_text().splitlines()) == 2


def test_last_line_of_a_key_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    for status in ("failed", "done"):
        append_result(path, {"key": "a", "status": status})
    assert read_results(path) == {"a": {"key": "a", "status": "done"}}


@pytest.mark.parametrize("line", [b"[1]", b"3", b'{"no": 1}', b'{"key": 3}', b"\xff\xfe", b"[" * 100_000])
def test_lines_that_are_no_rows_are_passed_over(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line + b'\n{"key": "a"}\n')
    assert read_results(path).keys() == {"a"}


def test_results_that_cannot_be_read_or_written_are_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot be read \(Is a directory\). Give another --out."):
        read_results(tmp_path)
    with pytest.raises(RunError, match=r"cannot be appended to .* Free space and run it again"):
        append_result(tmp_path, {"key": "a"})
