"""Read labels.csv: which picture has which class, group, fold and split."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from convpeft.data.quoting import quoted, reason
from convpeft.errors import DataError, OptionError, plainly

TABLE_NAME = "labels.csv"
_COLUMNS = {
    "file": ("file", "path", "image", "filename", "name"),
    "class": ("class", "label", "target", "category"),
    "group": ("group", "patient", "patient_id", "subject", "writer"),
    "fold": ("fold",),
    "split": ("split", "subset"),
}
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Row:
    """One picture of a folder source; `path` is None for a class folder as such."""

    path: Path | None
    name: str
    split: str
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a labels.csv, each with its split, and how the splits came to be."""

    rows: list[Row]
    notes: tuple[str, ...]


def read_table(root: Path, *, fold: int | None = None) -> Table:
    """Read ROOT/labels.csv, with a header and these columns (the first name found counts).

    file | path | image | filename | name: below ROOT, never outside it.
    class | label | target | category: the class name. With both `class` and `label`, `class` counts.
    group | patient | patient_id | subject | writer: optional, kept together in every split.
    fold: optional; the fold asked for (default: the first) is the test split, the next one validation.
    split | subset: optional; train, val or test, used when there is no fold column.

    Raises:
        DataError: If a column, a cell or a file name is missing or wrong; the line is named.
        OptionError: If `fold` is not a fold of the table.
    """
    path = root / TABLE_NAME
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            columns = _find_columns(path, reader.fieldnames or ())
            cells = [(reader.line_num, {k: (line.get(c) or "").strip() for k, c in columns.items()}) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table '{path}': cannot be read ({reason(error)}). Save it as UTF-8 with commas.") from error
    if not cells:
        raise DataError(f"table '{path}': has a header but no rows. Add one row a picture.")
    split_of, note = _fold_splits(path, [c.get("fold") for _, c in cells], fold)
    rows: list[Row] = []
    for line, cell in cells:
        where = f"table '{path}' line {line}"
        if not cell["file"] or not cell["class"]:
            raise DataError(f"{where}: the {'class' if cell['file'] else 'file'} is empty. Fill it in.")
        picture = _inside(root, cell["file"], where)
        split = split_of[cell["fold"]] if split_of else _named_split(cell.get("split"), where)
        # A picture of no named group is a group of its own.
        group = (cell["group"] or cell["file"]) if "group" in cell else None
        rows.append(Row(picture, cell["class"], split, group))
    _check_unique(path, rows)
    return Table(rows, (note,) if note else ())


def _find_columns(path: Path, header: object) -> dict[str, str]:
    names = {str(name).strip().lower(): str(name) for name in header} if isinstance(header, (list, tuple)) else {}
    columns: dict[str, str] = {}
    for key, choices in _COLUMNS.items():
        found = next((names[choice] for choice in choices if choice in names), None)
        if found is not None:
            columns[key] = found
        elif key in ("file", "class"):
            own = plainly(", ".join(names))[:300] or "none"
            raise DataError(
                f"table '{path}': has no {key} column (one of {', '.join(choices)}); "
                f"its columns are {own}. Add it to the header."
            )
    return columns


def _fold_splits(path: Path, folds: list[str | None], fold: int | None) -> tuple[dict[str, str], str]:
    if folds[0] is None:
        if fold is not None:
            raise OptionError(f"fold={fold}: the table '{path}' has no fold column. Leave fold out.")
        return {}, ""
    try:
        values = sorted({int(f or "") for f in folds})
    except ValueError:
        raise DataError(f"table '{path}': a fold is not a whole number. Number the folds 0, 1, 2, ...") from None
    if len(values) < 2:
        raise DataError(f"table '{path}': has one fold only, expected two or more. Remove the column or number it.")
    test = values[0] if fold is None else fold
    if test not in values:
        raise OptionError(f"fold={fold}: is no fold of '{path}'. Known: {', '.join(map(str, values))}.")
    val = values[(values.index(test) + 1) % len(values)] if len(values) > 2 else None
    split_of = {f: "test" if int(f) == test else "val" if int(f) == val else "train" for f in folds if f is not None}
    tail = "" if val is None else f", fold {val} is val"
    return split_of, f"fold {test} of {len(values)} is test{tail}, the others are train (column fold)"


def _named_split(word: str | None, where: str) -> str:
    if word is None:
        return "train"
    try:
        return SPLIT_WORDS[word.lower()]
    except KeyError:
        raise DataError(f"{where}: split {quoted(word)} is unknown, expected train, val or test.") from None


def _inside(root: Path, name: str, where: str) -> Path:
    """Join a file name to the root, refusing one that leads out of it."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or ".." in windows.parts or "\0" in name:
        raise DataError(f"{where}: file {quoted(name)} leads outside the folder. Give a path below '{root}'.")
    return root / name


def _check_unique(path: Path, rows: list[Row]) -> None:
    seen: set[Path | None] = set()
    for row in rows:
        if row.path in seen:
            raise DataError(f"table '{path}': lists {quoted(row.path)} twice. Remove one of the rows.")
        seen.add(row.path)
