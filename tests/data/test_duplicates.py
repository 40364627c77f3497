import numpy as np
import pytest
from data_files import class_folders

from convpeft.data import find_duplicates, load_data
from convpeft.data.datasets import Dataset, array_split
from convpeft.errors import DataError
from measuring import counted

pytestmark = pytest.mark.promise("B05")

RNG = np.random.default_rng(0)


def dataset_of(**splits: np.ndarray) -> Dataset:
    made = {name: array_split(name, images, [0] * len(images)) for name, images in splits.items()}
    return Dataset("x:y", ("a", "b"), made["train"], made["val"], made["test"])


def noise(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 5, 4), dtype=np.uint8)


def test_every_copy_across_splits_is_found():
    train, val, test = noise(20), noise(10), noise(10)
    val[3], test[4], test[7] = train[2], train[5], val[1]
    assert find_duplicates(dataset_of(train=train, val=val, test=test)) == [
        ("train", "train/2", "val", "val/3"),
        ("train", "train/5", "test", "test/4"),
        ("val", "val/1", "test", "test/7"),
    ]


def test_copies_within_a_split_are_no_leak():
    train = noise(20)
    train[1] = train[0]
    assert find_duplicates(dataset_of(train=train, val=noise(5), test=noise(5))) == []


def test_blank_images_are_counted_once_each():
    blank = np.zeros((30, 5, 4), np.uint8)
    assert len(find_duplicates(dataset_of(train=blank, val=noise(2), test=blank))) == 30


def test_same_bytes_in_another_shape_are_no_copy():
    train = noise(3)
    assert find_duplicates(dataset_of(train=train, val=noise(1), test=train.reshape(3, 4, 5))) == []


def test_copies_are_found_by_their_pixels_whatever_the_file(tmp_path):
    for name in ("train", "val", "test"):
        class_folders(tmp_path / name, {"a": 2, "b": 2})
    from PIL import Image

    Image.open(tmp_path / "train" / "a" / "0.png").save(tmp_path / "val" / "a" / "9.bmp")
    found = find_duplicates(load_data(f"folder:{tmp_path}"))
    assert ("train", "train/a/0.png", "val", "val/a/9.bmp") in found


def test_picture_that_cannot_be_read_is_named_and_counted(tmp_path):
    dataset = load_data(f"folder:{class_folders(tmp_path, {'a': 12, 'b': 12})}")
    broken = [split.ids[0] for split in dataset.splits().values()]
    for name in broken:
        (tmp_path / name).write_text("no picture any more")
    with pytest.raises(DataError, match=r"3 of 24 pictures cannot be read: ") as caught:
        find_duplicates(dataset)
    assert all(name in str(caught.value) for name in broken)


def test_every_planted_copy_is_found_and_no_other():
    pictures = RNG.integers(0, 256, (600, 6, 6), dtype=np.uint8)
    train, val, test = pictures[:300].copy(), pictures[300:400].copy(), pictures[400:].copy()
    places = RNG.permutation(100)
    val[places[:40]] = train[RNG.permutation(300)[:40]]
    test[places[:60]] = train[RNG.permutation(300)[:60]]
    found = find_duplicates(dataset_of(train=train, val=val, test=test))
    expected = {("val", f"val/{place}") for place in places[:40]} | {("test", f"test/{place}") for place in places[:60]}
    assert {(split, name) for first, _, split, name in found if first == "train"} == expected
    counted("planted copies", len(expected))
    counted("planted copies found", len({(split, name) for first, _, split, name in found if first == "train"}))
