from pathlib import Path

import pytest
from data_files import save_picture

from convpeft.data import load_data
from convpeft.errors import DataError, OptionError


def table(root: Path, header: str, *rows: str) -> str:
    """Write labels.csv and the pictures it names (the first column)."""
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    for number, row in enumerate(rows):
        save_picture(root / row.split(",")[0], value=number)
    return f"folder:{root}"


def fold_rows(folds: int, each: int = 4) -> list[str]:
    return [f"p{f}_{i}.png,{'ab'[i % 2]},patient{f}_{i // 2},{f}" for f in range(folds) for i in range(each)]


def ids_by_fold(split) -> set[str]:
    return {name.split("_")[0] for name in split.ids}


@pytest.mark.parametrize("file_column", ["file", "path", "image", "name"])
@pytest.mark.parametrize("class_column", ["class", "label"])
def test_columns_are_found_by_their_usual_names(tmp_path, file_column, class_column):
    spec = table(tmp_path, f"{file_column},{class_column}", *(f"{i}.png,{'xy'[i % 2]}" for i in range(10)))
    assert load_data(spec).classes == ("x", "y")


def test_class_counts_where_label_is_there_too(tmp_path):
    spec = table(tmp_path, "file,class,label", *(f"{i}.png,{'xy'[i % 2]},{i % 2}" for i in range(10)))
    assert load_data(spec).classes == ("x", "y")


def test_asked_fold_is_test_and_the_next_is_validation(tmp_path):
    spec = table(tmp_path, "file,class,patient,fold", *fold_rows(5))
    dataset = load_data(spec, fold=4)
    assert ids_by_fold(dataset.test) == {"p4"}
    assert ids_by_fold(dataset.val) == {"p0"}
    assert ids_by_fold(dataset.train) == {"p1", "p2", "p3"}
    assert dataset.notes == ("fold 4 of 5 is test, fold 0 is val, the others are train (column fold)",)


def test_first_fold_is_test_by_default(tmp_path):
    assert ids_by_fold(load_data(table(tmp_path, "file,class,patient,fold", *fold_rows(5))).test) == {"p0"}


def test_two_folds_leave_validation_to_be_cut_by_group(tmp_path):
    dataset = load_data(table(tmp_path, "file,class,patient,fold", *fold_rows(2, each=40)), fold=1)
    assert ids_by_fold(dataset.test) == {"p1"}
    assert not set(dataset.train.groups) & set(dataset.val.groups)
    assert "whole groups" in dataset.notes[1]


def test_patients_are_kept_together_where_there_is_no_fold(tmp_path):
    spec = table(tmp_path, "file,label,patient", *(f"{i}.png,{'ab'[i % 2]},{i // 4}" for i in range(80)))
    parts = [set(split.groups) for split in load_data(spec).splits().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20


def test_picture_without_a_group_is_its_own_group(tmp_path):
    spec = table(tmp_path, "file,label,group", *(f"{i}.png,{'ab'[i % 2]}," for i in range(20)))
    assert len(load_data(spec).test) == 4


def test_split_column_is_honoured(tmp_path):
    rows = [f"{i}.png,{'ab'[i % 2]},{('train', 'valid', 'Test')[i // 2]}" for i in range(6)]
    dataset = load_data(table(tmp_path, "file,class,split", *rows))
    assert [split.ids for split in dataset.splits().values()] == [
        ("0.png", "1.png"),
        ("2.png", "3.png"),
        ("4.png", "5.png"),
    ]


def test_byte_order_mark_of_spreadsheets_is_read_over(tmp_path):
    spec = table(tmp_path, "\ufefffile,class", *(f"{i}.png,{'ab'[i % 2]}" for i in range(10)))
    assert load_data(spec).classes == ("a", "b")


def test_unknown_fold_names_the_known_ones(tmp_path):
    spec = table(tmp_path, "file,class,patient,fold", *fold_rows(3))
    with pytest.raises(OptionError, match=r"fold=7: is no fold of .*\. Known: 0, 1, 2"):
        load_data(spec, fold=7)


def test_fold_without_the_column_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="has no fold column"):
        load_data(table(tmp_path, "file,class", "0.png,a", "1.png,b"), fold=0)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("picture,class", ["0.png,a"], r"has no file column .* its columns are picture, class"),
        ("file,kind", ["0.png,a"], "has no class column"),
        ("file,class", [], "has a header but no rows"),
        ("file,class", ["0.png,a", "1.png,"], r"line 3: the class is empty"),
        ("file,class,fold", ["0.png,a,x"], "a fold is not a whole number"),
        ("file,class,fold", ["0.png,a,1"], "has one fold only"),
        ("file,class,split", ["0.png,a,hold"], r"line 2: split 'hold' is unknown, expected train, val or test"),
        ("file,class", ["0.png,a", "0.png,b"], r"lists '.*0\.png' twice\. Remove one of the rows"),
    ],
)
def test_wrong_table_is_a_named_error(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=message):
        load_data(table(tmp_path, header, *rows))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "C:\\secret.png", "..\\x.png"]
)
def test_file_name_cannot_leave_the_folder(tmp_path, name):
    (tmp_path / "labels.csv").write_text(f"file,class\n{name},a\n")
    with pytest.raises(DataError, match=r"line 2: .* leads outside the folder"):
        load_data(f"folder:{tmp_path}")


def test_missing_picture_of_a_row_is_named(tmp_path):
    spec = table(tmp_path, "file,class", *(f"{i}.png,{'ab'[i % 2]}" for i in range(10)))
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 of 10 pictures cannot be read: 3.png does not exist"):
        load_data(spec)


def test_table_that_is_no_text_is_a_named_error(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"file,class\n\xff\xfe,a\n")
    with pytest.raises(DataError, match="Save it as UTF-8 with commas"):
        load_data(f"folder:{tmp_path}")
