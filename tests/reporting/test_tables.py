import csv

import numpy as np
import pytest

from convpeft.reporting import write_confusion_csv


def written(path, classes):
    matrix = np.arange(len(classes) ** 2).reshape(len(classes), len(classes))
    write_confusion_csv(path, matrix, classes)
    with path.open(encoding="utf-8", newline="") as stream:
        return matrix, list(csv.reader(stream))


def test_csv_holds_names_and_counts(tmp_path):
    matrix, rows = written(tmp_path / "confusion.csv", ["a", "b", "c"])
    assert rows[0] == ["true class", "a", "b", "c"]
    assert [row[0] for row in rows[1:]] == ["a", "b", "c"]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == matrix.tolist()


def test_csv_survives_separators_quotes_and_breaks(tmp_path):
    _, rows = written(tmp_path / "confusion.csv", ['a,"b"', "c;d", "日本\udcff\ne"])
    assert rows[0][1:] == ['a,"b"', "c;d", "日本\ufffd\ufffde"]
    assert len(rows) == 4


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\uff1d1", "\u3000=1"])
def test_csv_neutralises_formulas(tmp_path, name):
    _, rows = written(tmp_path / "confusion.csv", [name, "cat"])
    assert rows[0][1].startswith("'")
    assert rows[1][0].startswith("'")


@pytest.mark.parametrize("name", ["1", "a=b", "x-ray", "'quoted"])
def test_csv_leaves_other_names_alone(tmp_path, name):
    _, rows = written(tmp_path / "confusion.csv", [name, "cat"])
    assert rows[0][1] == name
