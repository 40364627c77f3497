import time

import numpy as np
import pytest
from PIL import Image

from convpeft.data import load_data
from convpeft.data.datasets import Dataset
from convpeft.data.glyphs import COUNTS, _draw, _masters


@pytest.fixture(scope="module")
def everything() -> Dataset:
    return load_data("glyphs:all")


def pictures(dataset: Dataset, split: str, name: str) -> list[np.ndarray]:
    part = dataset.splits()[split]
    return [part.images[i][:, :, 0] for i in np.flatnonzero(part.labels == dataset.classes.index(name))]


def shape_of(picture: np.ndarray) -> np.ndarray:
    """The inked box of a picture scaled to 12 x 12 and unit length: place, size and brightness are gone."""
    ink = picture > 110
    rows, columns = (np.flatnonzero(ink.any(axis)) if ink.any() else [0, 27] for axis in (1, 0))
    box = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = np.asarray(Image.fromarray(box).resize((12, 12), Image.Resampling.BILINEAR)).astype(np.float32).ravel()
    return scaled / max(float(np.linalg.norm(scaled)), 1.0)


def confusion(dataset: Dataset, one: str, other: str) -> float:
    """Share of test pictures of two classes that the five nearest training shapes put into the wrong one."""
    train, test = (
        np.stack([shape_of(p) for name in (one, other) for p in pictures(dataset, split, name)])
        for split in ("train", "test")
    )
    nearest = np.argsort(-(test @ train.T), axis=1)[:, :5] >= len(train) // 2
    return float(np.mean((nearest.mean(1) > 0.5) != (np.arange(len(test)) >= len(test) // 2)))


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
    assert np.array_equal(pictures(one, "train", "3"), pictures(other, "train", "3"))


def test_digits_are_a_part_of_all(everything):
    digits = load_data("glyphs:digits")
    assert np.array_equal(pictures(digits, "test", "5"), pictures(everything, "test", "5"))


def test_no_picture_occurs_twice(everything):
    seen = {image.tobytes() for split in everything.splits().values() for image in split.images.array}
    assert len(seen) == sum(len(split) for split in everything.splits().values())


@pytest.mark.parametrize("pair", ["0O", "Il", "sS", "xX", "oO"])
def test_twins_are_often_confused(everything, pair):
    assert confusion(everything, *pair) > 0.15


@pytest.mark.parametrize("pair", ["5S", "2Z", "1I", "1l"])
def test_look_alikes_are_confused(everything, pair):
    assert confusion(everything, *pair) > 0.065


@pytest.mark.parametrize("pair", ["0X", "1W", "5T", "2H"])
def test_unlike_characters_are_told_apart(everything, pair):
    assert confusion(everything, *pair) < 0.02


def test_zero_of_mono_faces_bears_no_mark():
    marks = _masters("0")[:, 28:36, 30:34].max(axis=(1, 2))
    assert marks.max() < 0.2


def test_drawing_a_character_is_fast():
    start = time.perf_counter()
    _draw.__wrapped__("R", "train")
    assert time.perf_counter() - start < 1
