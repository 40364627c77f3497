"""`convpeft demo`, in miniature."""

import csv
from pathlib import Path

import pytest

from convpeft import demo
from convpeft.errors import RunError


@pytest.mark.slow
def test_demo_compares_four_ways_and_keeps_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "LIMIT", 310)
    out = tmp_path / "demo"
    demo.run_demo(out, epochs=1)
    rows = list(csv.reader((out / "comparison.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 1 + len(demo.WAYS)
    assert {row[5] for row in rows[1:]} == {"bit-identical"}
    said = capsys.readouterr().out
    assert "most confused" in said
    assert said.rstrip().endswith("report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(title.replace("+", "&#43;") in page or title in page for title, _, _ in demo.WAYS)


def test_demo_leaves_a_directory_that_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(RunError, match=r"exists already\. Remove it or give another --out"):
        demo.run_demo(tmp_path, epochs=1)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
