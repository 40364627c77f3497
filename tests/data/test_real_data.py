"""Claims about the real files, where they are there."""

import numpy as np
import pytest
import torch

from convpeft.data import ImageBatches, find_duplicates, load_data
from convpeft.models.preprocessing import Preprocessing

pytestmark = pytest.mark.data


def test_mnist_counts_are_official(data_root):
    dataset = load_data(f"mnist:{data_root}")
    assert [len(split) for split in dataset.splits().values()] == [54001, 5999, 10000]
    assert dataset.test.class_counts(10).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_emnist_letters_are_upright(data_root):
    dataset = load_data(f"emnist-letters:{data_root}")
    assert dataset.test.class_counts(26).tolist() == [800] * 26
    images = dataset.test.images.array[dataset.test.labels == dataset.classes.index("T")].astype(float)
    # A T has its bar on top, and more ink above than below.
    assert images[:, :14].sum() > 1.2 * images[:, 14:].sum()
    letters = dataset.test.images.array[dataset.test.labels == dataset.classes.index("L")].astype(float)
    assert letters[:, 14:].sum() > letters[:, :14].sum()


def test_digits_and_letters_stand_the_same_way(data_root):
    dataset = load_data(f"mnist+letters:{data_root}")
    means = {
        name: dataset.test.images.array[dataset.test.labels == dataset.classes.index(name), :, :, 0].mean(0).ravel()
        for name in "25SZ"
    }
    for digit, letter in ("2Z", "5S"):
        upright = np.corrcoef(means[digit], means[letter])[0, 1]
        transposed = np.corrcoef(means[digit], means[letter].reshape(28, 28).T.ravel())[0, 1]
        assert upright > transposed + 0.1


def test_pneumoniamnist_leaks_eight_validation_images(data_root):
    dataset = load_data(f"npz:{data_root}/pneumoniamnist.npz")
    assert [len(split) for split in dataset.splits().values()] == [4708, 524, 624]
    found = find_duplicates(dataset)
    assert len([pair for pair in found if (pair[0], pair[2]) == ("train", "val")]) == 8


def test_retina_folds_keep_patients_together(data_root):
    for fold in range(5):
        dataset = load_data(f"folder:{data_root}/oct_kermany_test1000", fold=fold)
        assert dataset.classes == ("CNV", "DME", "DRUSEN", "NORMAL")
        patients = [set(split.groups or ()) for split in dataset.splits().values()]
        assert len(set.union(*patients)) == sum(map(len, patients)) == 633
        assert sum(len(split) for split in dataset.splits().values()) == 1000


def test_retina_batches_fit_an_imagenet_model(data_root):
    dataset = load_data(f"folder:{data_root}/oct_kermany_test1000", limit=8)
    batches = ImageBatches(dataset.train, Preprocessing(size=(64, 64)), batch_size=4)
    images, _, _ = next(iter(batches))
    assert images.shape == (4, 3, 64, 64)
    assert torch.equal(images.std((2, 3)) > 0, torch.ones(4, 3, dtype=torch.bool))


@pytest.mark.slow
def test_cifar10_folders_are_official(data_root):
    dataset = load_data(f"cifar10:{data_root}/cifar10")
    assert dataset.test.class_counts(10).tolist() == [1000] * 10
    assert dataset.classes[:2] == ("airplane", "automobile")
