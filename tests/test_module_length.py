"""A module says one thing, so it stays short."""

from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "convpeft"
LONGEST = 400


def test_modules_stay_short():
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(SOURCE.rglob("*.py"))
    }
    assert len(lengths) > 3
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long, f"split these along the ideas in them (at most {LONGEST} lines each): {too_long}"
