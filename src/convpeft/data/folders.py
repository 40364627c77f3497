"""Read a folder of pictures: train/val/test subfolders, or one folder of classes, or a labels.csv beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from convpeft.data.datasets import FileImages, Parts, Split
from convpeft.data.images import SUFFIXES, broken_pictures, find_fault
from convpeft.data.quoting import check_names, quoted
from convpeft.data.tables import SPLIT_WORDS, TABLE_NAME, Row, read_table
from convpeft.errors import DataError, OptionError, plainly

_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}


def load_folder(
    root: Path, *, fold: int | None = None, skip_broken: bool = False, classes: Sequence[str] | None = None
) -> Parts:
    """Read the pictures below a folder and check that every one of them opens.

    Args:
        root: Holds labels.csv, or train/val/test folders of class folders, or class folders.
        fold: The fold of labels.csv that becomes the test split.
        skip_broken: Leave damaged pictures out (every one is decoded to find them) and count them in the
            notes, where otherwise they are an error.
        classes: The official class names in order; a folder of another name is an error.

    Raises:
        DataError: If the folder is missing or empty, or holds damaged pictures.
        OptionError: If a fold is asked for that is not there.
    """
    if not root.is_dir():
        fault = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"folder '{root}': {fault}. Give a folder of class folders.")
    notes: list[str] = []
    if (root / TABLE_NAME).is_file():
        table = read_table(root, fold=fold)
        rows, notes = table.rows, list(table.notes)
    elif fold is not None:
        raise OptionError(f"fold={fold}: '{root}' has no {TABLE_NAME} with a fold column. Leave fold out.")
    else:
        rows = _walk(root, notes)
    names = _class_names(root, rows, classes)
    rows = _opening(root, [row for row in rows if row.path is not None], skip_broken, notes)
    splits = {
        name: _split(root, [row for row in rows if row.split == name], names) for name in ("train", "val", "test")
    }
    return Parts(names, splits, tuple(notes))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Order names as people do: '2' before '10'.

    >>> sorted(["10", "2", "b1", "a"], key=natural_key)
    ['2', '10', 'a', 'b1']
    """
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return (*((0, *_number_key(p)) if p[0] in "0123456789" else (1, 0, p) for p in pieces),)


def _number_key(digits: str) -> tuple[int, str]:
    """Order numbers of any length, which int() does not take; equal ones by their leading zeros."""
    number = digits.lstrip("0")
    return len(number), f"{number} {digits}"


def _walk(root: Path, notes: list[str]) -> list[Row]:
    folders = _subfolders(root)
    split_of = {folder: SPLIT_WORDS.get(folder.name.lower()) for folder in folders}
    named = [folder for folder, split in split_of.items() if split is not None]
    # "train" alone may be a class of vehicles; a split holds folders in turn.
    if named and (len(named) == len(folders) or any(_subfolders(folder) for folder in named)):
        ignored = [folder.name for folder, split in split_of.items() if split is None]
        if ignored:
            notes.append(f"ignored beside the splits: {', '.join(ignored)}")
        chosen = [(folder, split) for folder, split in split_of.items() if split is not None]
    else:
        chosen = [(root, "train")]
    rows: list[Row] = []
    others = 0
    for folder, split in chosen:
        for class_folder in _subfolders(folder):
            pictures, other = _pictures(class_folder)
            others += other
            # A row without a path keeps the name of a class that has no pictures.
            rows.append(Row(None, class_folder.name, split))
            rows += [Row(path, class_folder.name, split) for path in pictures]
    if all(row.path is None for row in rows):
        raise DataError(
            f"folder '{root}': holds no pictures in class folders. Expected CLASS/picture.png, "
            "train/CLASS/picture.png, or a labels.csv."
        )
    if others:
        notes.append(f"ignored {others:,} files that are no pictures by their name")
    return rows


def _subfolders(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if p.is_dir() and not _hidden(p.name)]
    return sorted(found, key=lambda path: natural_key(path.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _pictures(folder: Path) -> tuple[list[Path], int]:
    """List the pictures below a class folder, however deep, and count the other files."""
    pictures: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not _hidden(name)), key=natural_key)
        for name in sorted((name for name in files if not _hidden(name)), key=natural_key):
            if Path(name).suffix.lower() in SUFFIXES:
                pictures.append(Path(place, name))
            else:
                others += 1
    return pictures, others


def _class_names(root: Path, rows: Iterable[Row], official: Sequence[str] | None) -> tuple[str, ...]:
    found = {row.name for row in rows}
    if official is None:
        check_names(f"folder '{root}'", found)
        return tuple(sorted(found, key=natural_key))
    strange = sorted(found - set(official))
    if strange:
        raise DataError(
            f"folder '{root}': class folder {quoted(strange[0])} is none of the {len(official)} official classes "
            f"({', '.join(official[:3])}, ...). Rename it or read it with folder:."
        )
    return tuple(official)


def _opening(root: Path, rows: list[Row], skip_broken: bool, notes: list[str]) -> list[Row]:
    """Return the rows whose picture opens, or name the broken ones."""
    good: list[Row] = []
    broken: list[str] = []
    for row in rows:
        assert row.path is not None
        fault = find_fault(row.path, decode=skip_broken)
        if fault is None:
            good.append(row)
        else:
            broken.append(f"{plainly(_relative(root, row.path))} {fault}")
    if broken and not skip_broken:
        raise broken_pictures(f"folder '{root}'", broken, len(rows))
    if broken:
        shown = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        notes.append(f"skipped {len(broken):,} of {len(rows):,} pictures that cannot be read: {shown}")
    return good


def _split(root: Path, rows: list[Row], classes: tuple[str, ...]) -> Split:
    position = {name: i for i, name in enumerate(classes)}
    grouped = any(row.group is not None for row in rows)
    return Split(
        images=FileImages(tuple(row.path for row in rows if row.path is not None)),
        labels=np.array([position[row.name] for row in rows], dtype=np.int64),
        ids=tuple(_relative(root, row.path) for row in rows if row.path is not None),
        groups=tuple(row.group or "" for row in rows) if grouped else None,
    )


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
