"""All images of a data set as one split, and which splits were made."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convpeft.data import load_data
from convpeft.errors import OptionError


def test_all_holds_every_image_of_a_folder_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(np.full((8, 8), 20 * number, np.uint8)).save(tmp_path / name / f"{number}.png")
    dataset = load_data(f"folder:{tmp_path}")
    whole = dataset.split("all")
    assert dataset.made == ("test", "val")
    assert sorted(whole.ids) == sorted(f"{name}/{number}.png" for name in ("a", "b") for number in range(10))
    for image, label, name in zip(whole.images, whole.labels, whole.ids, strict=True):
        assert dataset.classes[label] == name[0]
        assert image[0, 0, 0] == 20 * int(name[2])


def test_all_of_images_in_memory_keeps_their_order() -> None:
    dataset = load_data("glyphs:digits")
    whole = dataset.split("all")
    assert len(whole) == sum(len(split) for split in dataset.splits().values())
    assert np.array_equal(whole.images[len(dataset.train)], dataset.val.images[0])
    assert dataset.made == ()


def test_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"split='tset' does not exist\. Did you mean 'test'\?"):
        load_data("glyphs:digits").split("tset")
