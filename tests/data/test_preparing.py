import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from convpeft.data import prepare
from convpeft.errors import DataError
from convpeft.models.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
# Pillow computes the cut-out alone from weights that are rounded at another place.
ONE_LEVEL = 1


def expecting(size=(16, 16), *, channels=3, **changes) -> Preprocessing:
    plain = Preprocessing(
        size=size, resize="crop", crop=1.0, mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels
    )
    return dataclasses.replace(plain, **changes)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def difference(found: torch.Tensor, expected: np.ndarray) -> int:
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    return int(np.abs(found.numpy().astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (16, 90), (9, 12), (33, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_equals_torchvision(shape, interpolation):
    image = noise(*shape)
    mode = v2.InterpolationMode(interpolation)
    reference = v2.Compose([v2.Resize(18, interpolation=mode), v2.CenterCrop(16)])
    expected = np.asarray(reference(Image.fromarray(image))).transpose(2, 0, 1)
    found = prepare(image, expecting(crop=0.875, interpolation=interpolation))
    assert difference(found, expected) <= ONE_LEVEL


def test_nearest_invents_no_value():
    image = np.where(noise(23, 31, 1) < 128, 7, 200).astype(np.uint8)
    found = prepare(image, expecting(crop=0.875, interpolation="nearest"))
    assert found.unique().tolist() == [7, 200]


def test_crop_covers_a_size_that_is_not_square():
    image = noise(40, 40)
    expected = np.asarray(Image.fromarray(image).resize((30, 30), Image.Resampling.BILINEAR))[10:20]
    assert difference(prepare(image, expecting((10, 30))), expected.transpose(2, 0, 1)) <= ONE_LEVEL


def test_squash_ignores_the_aspect():
    image = noise(40, 20)
    expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    assert difference(prepare(image, expecting(resize="squash")), expected.transpose(2, 0, 1)) == 0


def test_squash_cuts_the_centre_out():
    image = noise(40, 20)
    expected = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))[2:18, 2:18]
    assert difference(prepare(image, expecting(resize="squash", crop=0.8)), expected.transpose(2, 0, 1)) <= ONE_LEVEL


def test_pad_fits_the_whole_picture_on_black():
    found = prepare(np.full((8, 32, 3), 200, np.uint8), expecting(resize="pad"))
    assert found[:, 6:10].unique().tolist() == [200]
    assert found[:, :6].unique().tolist() == found[:, 10:].unique().tolist() == [0]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_picture_that_fits_is_unchanged(resize):
    image = noise(16, 16)
    assert difference(prepare(image, expecting(resize=resize)), image.transpose(2, 0, 1)) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_read_only_picture_is_copied(channels):
    image = noise(16, 16, channels)
    image.setflags(write=False)
    before = image.copy()
    prepare(image, expecting(channels=channels)).zero_()
    assert np.array_equal(image, before)


def test_thin_strip_costs_no_memory():
    assert prepare(noise(1, 50_000), expecting((224, 224))).shape == (3, 224, 224)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_grey_is_repeated(channels):
    image = noise(20, 16, 1)
    found = prepare(image, expecting(channels=channels))
    assert found.shape == (channels, 16, 16)
    assert all(torch.equal(plane, found[0]) for plane in found)


def test_colour_becomes_grey_as_pillow_does_it():
    image = noise(16, 16)
    expected = np.asarray(Image.fromarray(image).convert("L"))[None]
    assert difference(prepare(image, expecting(channels=1)), expected) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_goes_on_white(channels):
    image = noise(16, 16, 4)
    on_white = Image.alpha_composite(Image.new("RGBA", (16, 16), "white"), Image.fromarray(image, "RGBA"))
    expected = np.asarray(on_white.convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    assert difference(prepare(image, expecting(channels=channels)), expected.transpose(2, 0, 1)) <= ONE_LEVEL


def test_four_channels_are_resized_one_by_one():
    image = noise(32, 32, 4)
    planes = [Image.fromarray(image[:, :, i]).resize((16, 16), Image.Resampling.BILINEAR) for i in range(4)]
    assert difference(prepare(image, expecting(channels=4)), np.stack([np.asarray(p) for p in planes])) == 0


def test_channels_without_a_rule_are_an_error():
    with pytest.raises(DataError, match=r"images have 3 channels, the model takes 2, .* in_channels=3"):
        prepare(noise(16, 16), expecting(channels=2))
