import pytest
import torch

from convpeft.data.augmentation import PRESETS, augment, build_transform
from convpeft.errors import OptionError

IMAGES = torch.randint(0, 256, (6, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KEYS = [(0, 0, i) for i in range(6)]
MOVING = sorted(set(PRESETS) - {"none"})


def transform_of(preset: str, channels: int = 3):
    found = build_transform(preset, (16, 12), channels)
    assert found is not None
    return found


@pytest.mark.parametrize("preset", MOVING)
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_keep_shape_and_type_and_change_the_images(preset, channels):
    images = IMAGES[:, :channels]
    found = augment(images, transform_of(preset, channels), KEYS)
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(found, images)


@pytest.mark.parametrize("preset", MOVING)
def test_each_image_depends_on_its_own_key_alone(preset):
    together = augment(IMAGES, transform_of(preset), KEYS)
    alone = [augment(IMAGES[i : i + 1], transform_of(preset), KEYS[i : i + 1])[0] for i in (5, 0, 3)]
    assert torch.equal(torch.stack(alone), together[[5, 0, 3]])


@pytest.mark.parametrize("preset", MOVING)
def test_seed_epoch_and_index_all_matter(preset):
    same = IMAGES[:1].expand(40, -1, -1, -1)
    base, *others = (
        augment(same, transform_of(preset), keys)
        for keys in (
            [(0, 0, i) for i in range(40)],
            [(1, 0, i) for i in range(40)],
            [(0, 1, i) for i in range(40)],
            [(0, 0, i + 40) for i in range(40)],
        )
    )
    assert not any(torch.equal(base, other) for other in others)


@pytest.mark.parametrize("preset", MOVING)
def test_global_random_state_is_put_back(preset):
    before = torch.get_rng_state()
    augment(IMAGES, transform_of(preset), KEYS)
    assert torch.equal(torch.get_rng_state(), before)


def test_characters_are_never_mirrored_by_light():
    arrow = torch.zeros(1, 16, 16, dtype=torch.uint8)
    arrow[:, :, :4] = 255  # ink on the left
    found = augment(arrow.expand(200, -1, -1, -1), transform_of("light"), [(0, 0, i) for i in range(200)])
    assert (found[..., :8].sum((1, 2, 3)) > found[..., 8:].sum((1, 2, 3))).all()


def test_flip_moves_by_an_eighth_at_most_and_mirrors_half():
    arrow = torch.zeros(1, 16, 12, dtype=torch.uint8)
    arrow[:, 8, 1] = 255
    found = augment(arrow.expand(400, -1, -1, -1), transform_of("flip"), [(0, 0, i) for i in range(400)])
    rows, columns = found[:, 0].nonzero()[:, 1], found[:, 0].nonzero()[:, 2]
    assert set(rows.tolist()) == {6, 7, 8, 9, 10}
    assert set(columns.tolist()) == {0, 1, 2, 9, 10, 11}
    assert 0.4 < (columns > 6).float().mean() < 0.6


def test_none_is_no_transform():
    assert build_transform("none", (16, 12), 3) is None


def test_unknown_preset_names_the_nearest():
    with pytest.raises(OptionError, match=r"augment='ligth': is no augmentation\. Did you mean 'light'"):
        build_transform("ligth", (16, 12), 3)


@pytest.mark.parametrize("preset", ["medical", "strong"])
def test_preset_that_needs_colours_says_so(preset):
    with pytest.raises(OptionError, match=r"works on 1 or 3 channels, not 4. Use 'light' or 'flip'"):
        build_transform(preset, (16, 12), 4)
