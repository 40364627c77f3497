import time

import numpy as np
import pytest

from convpeft.data import load_data
from convpeft.data.datasets import Dataset
from convpeft.data.glyphs import COUNTS, _draw, _masters


@pytest.fixture(scope="module")
def everything() -> Dataset:
    return load_data("glyphs:all")


def pixels(dataset: Dataset, split: str, name: str) -> np.ndarray:
    """The pictures of one class as float rows (count, 784)."""
    part = dataset.splits()[split]
    places = np.flatnonzero(part.labels == dataset.classes.index(name))
    return np.stack([part.images[i].ravel() for i in places]).astype(np.float32)


def neighbour_error(dataset: Dataset, one: str, other: str) -> float:
    """Share of test pictures of two classes whose nearest training picture is of the wrong one."""
    train, test = (
        np.concatenate([pixels(dataset, split, one), pixels(dataset, split, other)]) for split in ("train", "test")
    )
    distance = (train**2).sum(1)[None] - 2 * test @ train.T
    found = distance.argmin(1) >= len(train) // 2
    return float(np.mean(found != (np.arange(len(test)) >= len(test) // 2)))


def test_sets_have_their_classes_and_counts(everything):
    assert [len(load_data(f"glyphs:{name}").classes) for name in ("digits", "letters")] == [10, 52]
    assert "".join(everything.classes) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    for name, split in everything.splits().items():
        assert split.class_counts(62).tolist() == [COUNTS[name]] * 62


def test_pictures_have_the_form_of_mnist(everything):
    picture = everything.train.images[0]
    assert (picture.shape, picture.dtype) == ((28, 28, 1), np.uint8)
    border = [everything.train.images[i][0].mean() for i in range(0, 24800, 100)]
    assert np.mean(border) < 30


def test_drawing_again_gives_the_same_bytes():
    assert np.array_equal(_draw.__wrapped__("7", "val"), _draw.__wrapped__("7", "val"))


def test_seed_does_not_change_the_pictures():
    one, other = (load_data("glyphs:digits", seed=seed) for seed in (0, 1))
    assert np.array_equal(pixels(one, "train", "3"), pixels(other, "train", "3"))


def test_digits_are_a_part_of_all(everything):
    digits = load_data("glyphs:digits")
    assert np.array_equal(pixels(digits, "test", "5"), pixels(everything, "test", "5"))


def test_no_picture_occurs_twice(everything):
    seen = {image.tobytes() for split in everything.splits().values() for image in split.images.array}
    assert len(seen) == sum(len(split) for split in everything.splits().values())


@pytest.mark.parametrize("pair", ["0O", "Il", "sS", "xX", "oO"])
def test_twins_are_often_confused(everything, pair):
    assert neighbour_error(everything, *pair) > 0.15


@pytest.mark.parametrize("pair", ["5S", "2Z", "1I", "1l"])
def test_look_alikes_are_confused(everything, pair):
    assert neighbour_error(everything, *pair) > 0.05


@pytest.mark.parametrize("pair", ["0X", "1W", "5T", "2H"])
def test_unlike_characters_are_told_apart(everything, pair):
    assert neighbour_error(everything, *pair) < 0.03


def test_zero_of_mono_faces_bears_no_mark():
    marks = _masters("0")[:, 28:36, 30:34].max(axis=(1, 2))
    assert marks.max() < 0.2


def test_drawing_a_character_is_fast():
    start = time.perf_counter()
    _draw.__wrapped__("R", "train")
    assert time.perf_counter() - start < 1
