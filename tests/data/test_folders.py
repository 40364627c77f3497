import os

import pytest
from data_files import class_folders, save_picture

from convpeft.data import load_data
from convpeft.errors import DataError, OptionError


def labelled_names(dataset, split: str) -> list[tuple[str, str]]:
    """The class name of each image and the folder it came from."""
    part = dataset.splits()[split]
    return [(dataset.classes[y], i.split("/")[-2]) for y, i in zip(part.labels, part.ids, strict=True)]


def test_class_folders_are_split_three_ways(tmp_path):
    dataset = load_data(f"folder:{class_folders(tmp_path, {'cat': 10, 'dog': 20})}")
    assert [len(split) for split in dataset.splits().values()] == [21, 3, 6]


@pytest.mark.promise("C14")
def test_numbered_folders_keep_their_names(tmp_path):
    class_folders(tmp_path, {str(n): 5 for n in range(1, 13)})
    dataset = load_data(f"folder:{tmp_path}")
    assert dataset.classes == tuple(str(n) for n in range(1, 13))
    for split in dataset.splits():
        assert all(name == folder for name, folder in labelled_names(dataset, split))


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_given_splits_are_found_by_their_usual_names(tmp_path, val):
    for name, count in (("train", 4), (val, 2), ("test", 3)):
        class_folders(tmp_path / name, {"a": count, "b": count})
    dataset = load_data(f"folder:{tmp_path}")
    assert [len(split) for split in dataset.splits().values()] == [8, 4, 6]
    assert dataset.notes == ()


@pytest.mark.promise("C14")
def test_split_that_lacks_a_class_keeps_labels_by_name(tmp_path):
    class_folders(tmp_path / "train", {"a": 5, "b": 5, "c": 5})
    class_folders(tmp_path / "test", {"c": 2})
    assert labelled_names(load_data(f"folder:{tmp_path}"), "test") == [("c", "c"), ("c", "c")]


@pytest.mark.promise("B04")
def test_class_only_in_test_is_an_error(tmp_path):
    class_folders(tmp_path / "train", {"a": 5, "b": 5})
    class_folders(tmp_path / "test", {"a": 2, "z": 1})
    with pytest.raises(DataError, match="the test split has class 'z'"):
        load_data(f"folder:{tmp_path}")


def test_class_may_be_called_train(tmp_path):
    assert load_data(f"folder:{class_folders(tmp_path, {'train': 5, 'tractor': 5})}").classes == ("tractor", "train")


def test_splits_without_train_are_not_taken_for_classes(tmp_path):
    for name in ("val", "test"):
        class_folders(tmp_path / name, {"a": 2, "b": 2})
    with pytest.raises(DataError, match="has no training images"):
        load_data(f"folder:{tmp_path}")


def test_splits_without_class_folders_are_not_taken_for_classes(tmp_path):
    with pytest.raises(DataError, match="holds no pictures in class folders"):
        load_data(f"folder:{class_folders(tmp_path, {'train': 5, 'test': 5})}")


def test_folders_beside_the_splits_are_noted(tmp_path):
    class_folders(tmp_path / "train", {"a": 9, "b": 9})
    class_folders(tmp_path, {"drafts": 1})
    assert load_data(f"folder:{tmp_path}").notes[0] == "ignored beside the splits: drafts"


@pytest.mark.promise("C14")
def test_hidden_folders_and_files_are_no_classes(tmp_path):
    class_folders(tmp_path, {"a": 5, "b": 5, ".thumbs": 3, "__MACOSX": 3})
    save_picture(tmp_path / "a" / ".hidden.png")
    dataset = load_data(f"folder:{tmp_path}")
    assert dataset.classes == ("a", "b")
    assert sum(len(split) for split in dataset.splits().values()) == 10


def test_pictures_in_deeper_folders_belong_to_the_class(tmp_path):
    class_folders(tmp_path, {"a": 5, "b": 5})
    save_picture(tmp_path / "a" / "more" / "x.png")
    dataset = load_data(f"folder:{tmp_path}")
    assert sum(split.class_counts(2)[0] for split in dataset.splits().values()) == 6


def test_other_files_are_counted_in_the_notes(tmp_path):
    class_folders(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "readme.txt").write_text("x")
    assert "ignored 1 files that are no pictures by their name" in load_data(f"folder:{tmp_path}").notes


@pytest.mark.promise("B04")
def test_empty_class_folder_is_kept_and_noted(tmp_path):
    class_folders(tmp_path, {"a": 5, "b": 5, "empty": 0})
    dataset = load_data(f"folder:{tmp_path}")
    assert dataset.classes == ("a", "b", "empty")
    assert "class 'empty': no images in any split" in dataset.notes


@pytest.mark.promise("B02")
def test_broken_pictures_are_named_and_counted_before_anything_is_trained(tmp_path):
    class_folders(tmp_path, {"a": 9, "b": 9})
    for number in range(7):
        (tmp_path / "a" / f"{number}.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        load_data(f"folder:{tmp_path}")
    message = str(caught.value)
    assert "7 of 18 pictures cannot be read" in message
    assert [f"a/{n}.png" in message for n in range(7)] == [True] * 5 + [False] * 2
    assert "and 2 more. Replace or remove them, or load with skip_broken=True." in message


@pytest.mark.promise("B02")
@pytest.mark.timeout(30)
def test_pipes_and_links_in_a_folder_are_named_and_never_waited_for(tmp_path):
    class_folders(tmp_path, {"a": 9, "b": 9})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    os.mkfifo(tmp_path / "b" / "labels.csv")
    (tmp_path / "b" / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "b" / "circle.png").symlink_to("circle.png")
    (tmp_path / "b" / "device.png").symlink_to(os.devnull)
    with pytest.raises(DataError, match=r"4 of 22 pictures cannot be read: a/pipe.png .*, b/circle.png ") as caught:
        load_data(f"folder:{tmp_path}")
    assert all(f"b/{name}.png" in str(caught.value) for name in ("circle", "dangling", "device"))
    dataset = load_data(f"folder:{tmp_path}", skip_broken=True)
    assert sum(len(split) for split in dataset.splits().values()) == 18
    assert any(note.startswith("skipped 4 of 22 pictures that cannot be read: ") for note in dataset.notes)


@pytest.mark.promise("B02")
def test_broken_pictures_are_skipped_with_an_exact_count(tmp_path):
    class_folders(tmp_path, {"a": 9, "b": 9})
    content = bytearray((tmp_path / "a" / "1.png").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF  # inside the pixels: only decoding finds it
    (tmp_path / "a" / "1.png").write_bytes(content)
    (tmp_path / "b" / "2.png").unlink()
    (tmp_path / "b" / "2.png").symlink_to("nowhere.png")
    dataset = load_data(f"folder:{tmp_path}", skip_broken=True)
    assert sum(len(split) for split in dataset.splits().values()) == 16
    assert dataset.notes[0].startswith("skipped 2 of 18 pictures that cannot be read: a/1.png")


def test_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere': does not exist\. Give a folder of class folders"):
        load_data(f"folder:{tmp_path / 'nowhere'}")


def test_folder_without_pictures_says_what_is_expected(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"holds no pictures in class folders. Expected CLASS/picture.png"):
        load_data(f"folder:{tmp_path}")


def test_fold_without_a_table_is_an_error(tmp_path):
    with pytest.raises(OptionError, match=r"fold=1: .* has no labels.csv with a fold column\. Leave fold out"):
        load_data(f"folder:{class_folders(tmp_path, {'a': 5, 'b': 5})}", fold=1)
