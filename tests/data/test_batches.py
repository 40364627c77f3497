import time

import numpy as np
import pytest
import torch
from data_files import class_folders

from convpeft.data import ImageBatches, load_data, prepare
from convpeft.data.datasets import FileImages, Split, array_split
from convpeft.errors import DataError, OptionError
from convpeft.models.preprocessing import Preprocessing

PLAIN = Preprocessing(size=(8, 8), resize="squash", crop=1.0, mean=(0.4,), std=(0.3,), channels=1)
COLOUR = Preprocessing(size=(12, 10), resize="crop", crop=0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channels=3)
# One multiplication and one addition in float32, of numbers up to about 10.
FLOAT32_TOLERANCE = {"rtol": 1e-6, "atol": 2e-6}


def split_of(count: int = 50, size: int = 8, channels: int = 1) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return array_split("train", images, rng.integers(0, 5, count))


def collected(batches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels, index = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)


@pytest.mark.parametrize("preprocessing", [PLAIN, COLOUR])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_prepared_and_normalised(preprocessing, channels):
    split = split_of(channels=channels)
    images, labels, index = collected(ImageBatches(split, preprocessing, batch_size=16))
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    prepared = np.stack([prepare(split.images[i], preprocessing).numpy() for i in range(50)])
    np.testing.assert_allclose(images.numpy(), (prepared / 255 - mean) / std, **FLOAT32_TOLERANCE)
    assert (images.dtype, labels.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert labels.tolist() == split.labels.tolist()
    assert index.tolist() == [*range(50)]


def test_index_leads_back_to_image_and_label():
    split = split_of()
    for images, labels, index in ImageBatches(split, PLAIN, batch_size=7, shuffle=True):
        for image, label, i in zip(images, labels, index, strict=True):
            assert label == split.labels[i]
            assert torch.equal((image * 0.3 + 0.4).mul(255).round().to(torch.uint8), prepare(split.images[i], PLAIN))


def test_order_is_a_function_of_seed_and_epoch():
    batches = ImageBatches(split_of(), PLAIN, batch_size=8, shuffle=True, seed=3)
    orders = {}
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        orders[epoch] = collected(batches)[2].tolist()
    assert orders[0] != orders[1] != orders[5]
    resumed = ImageBatches(split_of(), PLAIN, batch_size=8, shuffle=True, seed=3)
    resumed.set_epoch(5)
    assert collected(resumed)[2].tolist() == orders[5]
    assert sorted(orders[5]) == [*range(50)]


def test_seed_changes_the_order():
    one, other = (collected(ImageBatches(split_of(), PLAIN, batch_size=8, shuffle=True, seed=s))[2] for s in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_change_no_bit(shuffle):
    found = []
    for workers in (0, 2):
        batches = ImageBatches(split_of(), PLAIN, batch_size=8, shuffle=shuffle, augment="light", workers=workers)
        batches.set_epoch(2)
        found.append(collected(batches))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_augmentation_changes_with_the_epoch_and_comes_back():
    batches = ImageBatches(split_of(), PLAIN, batch_size=8, augment="light")
    found = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        found.append(collected(batches)[0])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_augmentation_of_an_image_does_not_depend_on_its_batch():
    small, large = (
        collected(ImageBatches(split_of(), PLAIN, batch_size=size, augment="flip", shuffle=size == 50))
        for size in (3, 50)
    )
    assert torch.equal(small[0][large[2]], large[0])


def test_iterating_leaves_the_global_random_state_alone():
    batches = ImageBatches(split_of(), PLAIN, batch_size=8, shuffle=True, augment="strong")
    before = torch.get_rng_state()
    first = collected(batches)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(collected(batches)[0], first)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [16, 16, 16, 2]), (True, [16, 16, 16])])
def test_last_batch_is_kept_or_dropped(drop_last, sizes):
    batches = ImageBatches(split_of(), PLAIN, batch_size=16, drop_last=drop_last)
    assert [len(labels) for _, labels, _ in batches] == sizes
    assert len(batches) == len(sizes)


def test_uncached_images_are_the_same():
    cached, uncached = (ImageBatches(split_of(), COLOUR, batch_size=8, cache_bytes=size) for size in (1 << 20, 10))
    assert cached.dataset.cached_bytes > 0
    assert uncached.dataset.cached_bytes == 0
    assert all(map(torch.equal, collected(cached), collected(uncached)))


def test_limit_of_the_cache_is_the_size_of_the_prepared_images():
    size = ImageBatches(split_of(), COLOUR, batch_size=8).dataset.cached_bytes
    assert size == len(split_of()) * COLOUR.channels * COLOUR.size[0] * COLOUR.size[1]
    assert ImageBatches(split_of(), COLOUR, batch_size=8, cache_bytes=size).dataset.cached_bytes == size
    assert ImageBatches(split_of(), COLOUR, batch_size=8, cache_bytes=size - 1).dataset.cached_bytes == 0


def test_single_item_equals_its_place_in_a_batch():
    batches = ImageBatches(split_of(), PLAIN, batch_size=50)
    assert all(map(torch.equal, batches.dataset[7], (part[7] for part in next(iter(batches)))))


def test_prepared_accelerate_loader_keeps_our_epoch():
    accelerate = pytest.importorskip("accelerate")
    batches = ImageBatches(split_of(), PLAIN, batch_size=8, shuffle=True, augment="light")
    prepared = accelerate.Accelerator(cpu=True).prepare(batches.loader)
    for epoch in (4, 0, 2):
        batches.set_epoch(epoch)
        assert all(map(torch.equal, collected(prepared), collected(batches)))


@pytest.mark.promise("B02")
def test_broken_pictures_are_named_and_counted(tmp_path):
    dataset = load_data(f"folder:{class_folders(tmp_path, {'a': 12, 'b': 12})}")
    for name in dataset.train.ids[:6]:
        (tmp_path / name).write_text("no picture any more")
    with pytest.raises(
        DataError, match=rf"6 of {len(dataset.train)} pictures cannot be read: {dataset.train.ids[0]} .* 1 more"
    ):
        ImageBatches(dataset.train, PLAIN, batch_size=4)


def test_files_are_read_in_order(tmp_path):
    dataset = load_data(f"folder:{class_folders(tmp_path, {'a': 12, 'b': 12})}")
    assert isinstance(dataset.train.images, FileImages)
    images, _, _ = collected(ImageBatches(dataset.train, PLAIN, batch_size=5))
    values = [int(dataset.train.images[i][0, 0, 0]) for i in range(len(dataset.train))]
    assert (images * 0.3 + 0.4).mul(255).round().mean((1, 2, 3)).tolist() == pytest.approx(values, abs=0.01)


@pytest.mark.parametrize(("option", "value", "least"), [("batch_size", 0, 1), ("seed", -1, 0), ("workers", -1, 0)])
def test_option_out_of_range_is_named(option, value, least):
    with pytest.raises(OptionError, match=rf"{option}={value}: expected {least} or more\.$"):
        ImageBatches(split_of(), PLAIN, **{"batch_size": 4, option: value})


def test_images_in_memory_are_served_fast():
    split = array_split("train", np.zeros((20_000, 28, 28), np.uint8), np.zeros(20_000, np.int64))
    batches = ImageBatches(split, Preprocessing((28, 28), "crop", 1.0, (0.1,), (0.3,), 1), batch_size=128, shuffle=True)
    start = time.process_time()
    assert sum(len(labels) for _, labels, _ in batches) == 20_000
    assert 20_000 / (time.process_time() - start) > 50_000
