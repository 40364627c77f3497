import subprocess
import sys

import pytest
from data_files import class_folders

from convpeft.data import list_sources, load_data
from convpeft.errors import DataError, OptionError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foldr:x", "data 'foldr:x': is no data spec. Did you mean 'folder:PATH'"),
        ("glyphs:digit", "Did you mean 'glyphs:digits'"),
        ("", "is no data spec"),
        ("folder:", "names no path. Write 'folder:PATH'"),
        ("npz", "names no path. Write 'npz:FILE'"),
        ("mnist:a\0b", "the path holds a zero byte"),
    ],
)
def test_bad_spec_is_answered_with_the_nearest(spec, message):
    with pytest.raises(OptionError, match=message):
        load_data(spec)


def test_plain_path_is_answered_with_the_spec_to_write(tmp_path):
    with pytest.raises(OptionError, match=f"is a path, expected a spec. Write 'folder:{tmp_path}'"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("val_fraction", 0.0, "expected a share between 0 and 1, such as 0.1"),
        ("val_fraction", float("nan"), "expected a share between 0 and 1, such as 0.1"),
        ("test_fraction", 1.0, "expected a share between 0 and 1, such as 0.1"),
        ("seed", -1, "expected 0 or more"),
        ("limit", 0, "expected 1 or more, or no limit"),
    ],
)
def test_option_out_of_range_is_named(option, value, expected):
    with pytest.raises(OptionError, match=f"{option}={value}: {expected}"):
        load_data("glyphs:digits", **{option: value})


def test_fold_of_a_source_without_folds_is_an_error():
    with pytest.raises(OptionError, match="fold=1: only folder: sources"):
        load_data("glyphs:digits", fold=1)


def test_missing_path_is_named(tmp_path):
    for spec in ("folder", "npz", "mnist", "emnist-byclass", "cifar10"):
        with pytest.raises(DataError, match="nowhere"):
            load_data(f"{spec}:{tmp_path}/nowhere")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    class_folders(tmp_path / "pictures", {"a": 5, "b": 5})
    assert load_data("folder:~/pictures").classes == ("a", "b")


def test_every_source_says_what_it_is():
    infos = list_sources()
    assert len({info.pattern for info in infos}) == len(infos) == 13
    assert all(info.description for info in infos)
    assert {info.pattern: info.classes for info in infos}["glyphs:all"] == 62


def test_sources_are_listed_without_torch():
    code = "import sys; from convpeft.data import list_sources; list_sources(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_limit_reaches_the_source():
    assert load_data("glyphs:digits", limit=50).train.class_counts(10).tolist() == [5] * 10


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"fraction": 0.0}, "expected a share of the training images above 0, at most 1"),
        ({"fraction": 1.5}, "expected a share of the training images above 0, at most 1"),
        ({"per_class": 0}, "expected 1 or more training images of each class"),
        ({"val_per_class": 0}, "val_per_class=0: expected 1 or more validation images of each class"),
        ({"per_class": 1, "limit": 2}, "exclude each other: each says which part of train is taken"),
    ],
)
def test_part_of_train_that_cannot_be_is_refused(part, message):
    with pytest.raises(OptionError, match=message):
        load_data("glyphs:digits", **part)
