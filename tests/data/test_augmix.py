"""AugMix and corruptions as augmentations: mild, seeded, and named apart from the test's."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from convpeft.data import augmix as module
from convpeft.data.augmentation import augment, build_transform, check_augmentation, corruptions_of
from convpeft.data.augmix import augmix
from convpeft.errors import OptionError

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(np.stack([IMAGE] * 40)).permute(0, 3, 1, 2)
KEYS = [(0, 0, i) for i in range(40)]


def transform_of(name: str, channels: int = 3):
    found = build_transform(name, (32, 32), channels)
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_augmix_depends_on_the_generator_alone(channels):
    first, again, other = (augmix(IMAGE[..., :channels], np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (32, 32, channels)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_augmix_mixes_the_image_with_its_chains(monkeypatch):
    """With inversion as the only operation every chain is the image or its inverse, so all stay on a line."""
    monkeypatch.setattr(module, "_OPERATIONS", (lambda picture, strength, sign: ImageOps.invert(picture),))
    found = augmix(IMAGE, np.random.default_rng(3)).astype(float)
    x = IMAGE.astype(float).ravel()
    slope, offset = np.polyfit(x, found.ravel(), 1)
    assert np.abs(slope * x + offset - found.ravel()).max() < 1.01
    assert offset == pytest.approx(255 * (1 - slope) / 2, abs=1)  # (1 - w) x + w (255 - x)
    assert -1 <= slope <= 1


def test_operations_are_mild_and_none_is_a_test_corruption():
    names = {operation.__name__ for operation in module._OPERATIONS}
    assert names == {
        *("_stretch", "_equalise", "_posterise", "_solarise", "_turn"),
        *("_shear_x", "_shear_y", "_shift_x", "_shift_y"),
    }
    spot = np.zeros((33, 33), np.uint8)
    spot[16, 16] = 255
    for operation in (module._shift_x, module._shift_y):
        moved = np.argwhere(np.asarray(operation(Image.fromarray(spot), 0.3, 1)))
        assert np.abs(moved - 16).max() == 3  # a third of the side times 3 of 10
    assert np.asarray(module._solarise(Image.fromarray(np.full((2, 2), 170, np.uint8)), 0.3, 1)).max() == 170
    assert np.asarray(module._solarise(Image.fromarray(np.full((2, 2), 200, np.uint8)), 0.3, 1)).max() == 55


@pytest.mark.parametrize("name", ["augmix", "corrupt:fog,rain", "corrupt:all"])
def test_each_image_depends_on_seed_epoch_and_index(name):
    together = augment(IMAGES, transform_of(name), KEYS)
    alone = augment(IMAGES[7:8], transform_of(name), KEYS[7:8])
    assert torch.equal(together[7:8], alone)
    for keys in ([(1, 0, i) for i in range(40)], [(0, 1, i) for i in range(40)], [(0, 0, i + 40) for i in range(40)]):
        assert not torch.equal(augment(IMAGES, transform_of(name), keys), together)


def test_half_of_the_images_are_corrupted():
    images = IMAGES[:1].expand(400, -1, -1, -1)
    found = augment(images, transform_of("corrupt:fog"), [(0, 0, i) for i in range(400)])
    same = [torch.equal(a, b) for a, b in zip(found, images, strict=True)]
    assert 0.42 < np.mean(same) < 0.58


def test_grey_image_of_three_channels_stays_grey_under_noise():
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    found = augment(grey, transform_of("corrupt:gaussian_noise"), KEYS)
    assert torch.equal(found, found[:, :1].expand(-1, 3, -1, -1))
    assert not torch.equal(found, grey)


@pytest.mark.parametrize("name", ["augmix", "corrupt:fog"])
def test_transform_can_be_sent_to_a_worker(name):
    copy = pickle.loads(pickle.dumps(transform_of(name)))
    assert torch.equal(augment(IMAGES, copy, KEYS), augment(IMAGES, transform_of(name), KEYS))


def test_training_corruptions_are_known_by_name():
    assert corruptions_of("corrupt:rain,fog") == ("fog", "rain")
    assert corruptions_of("augmix") == ()


def test_unknown_augmentation_names_the_nearest():
    with pytest.raises(OptionError, match=r"data\.augment='augmx': is no augmentation\. Did you mean 'augmix'"):
        check_augmentation("augmx")
    with pytest.raises(OptionError, match=r"corruption 'rnai' does not exist\. Did you mean 'rain'"):
        check_augmentation("corrupt:fog,rnai")


@pytest.mark.parametrize("name", ["augmix", "corrupt:fog"])
def test_augmentation_that_needs_colours_says_so(name):
    with pytest.raises(OptionError, match=r"works on 1 or 3 channels, not 4"):
        build_transform(name, (32, 32), 4)
