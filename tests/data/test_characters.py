import gzip
import zipfile

import numpy as np
import pytest
from data_files import idx_bytes, write_emnist, write_idx, write_mnist

from convpeft.data import load_data
from convpeft.errors import DataError

DIGITS = [*range(10)] * 4
LETTERS = [*range(1, 27)] * 4


def pixels(split) -> np.ndarray:
    return np.stack([split.images[i][:, :, 0] for i in range(len(split))])


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_found_in_the_usual_places(tmp_path, place, suffix):
    images = write_mnist(tmp_path / place, labels=DIGITS, suffix=suffix)
    dataset = load_data(f"mnist:{tmp_path}")
    assert np.array_equal(pixels(dataset.test), images)
    assert dataset.test.labels.tolist() == DIGITS


def test_mnist_validation_is_cut_out_of_train(tmp_path):
    write_mnist(tmp_path, labels=DIGITS)
    dataset = load_data(f"mnist:{tmp_path}")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (30, 10, 40)


def test_emnist_letters_are_upright_and_named(tmp_path):
    upright = write_emnist(tmp_path / "EMNIST" / "raw", "letters", labels=LETTERS)
    dataset = load_data(f"emnist-letters:{tmp_path}")
    assert np.array_equal(pixels(dataset.test), upright)
    assert dataset.classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert [dataset.classes[y] for y in dataset.test.labels[:3]] == ["A", "B", "C"]


# The official mapping files, as ranges of character codes.
@pytest.mark.parametrize(
    ("variant", "codes"),
    [
        ("balanced", [*range(48, 58), *range(65, 91), 97, 98, 100, 101, 102, 103, 104, 110, 113, 114, 116]),
        ("byclass", [*range(48, 58), *range(65, 91), *range(97, 123)]),
    ],
)
def test_emnist_classes_follow_the_official_mapping(tmp_path, variant, codes):
    write_emnist(tmp_path, variant, labels=[*range(len(codes))] * 3)
    assert load_data(f"emnist-{variant}:{tmp_path}").classes == tuple(chr(code) for code in codes)


def test_emnist_is_read_out_of_the_official_archive(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (104, 28, 28), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for split in ("train", "test"):
            for kind, array in (("images-idx3", np.swapaxes(upright, 1, 2)), ("labels-idx1", np.array(LETTERS))):
                name = f"gzip/emnist-letters-{split}-{kind}-ubyte.gz"
                archive.writestr(name, gzip.compress(idx_bytes(array)))
    assert np.array_equal(pixels(load_data(f"emnist-letters:{tmp_path}").test), upright)


def test_digits_and_letters_meet_upright_in_36_classes(tmp_path):
    digits = write_mnist(tmp_path / "MNIST" / "raw", labels=DIGITS)
    letters = write_emnist(tmp_path / "EMNIST" / "raw", "letters", labels=LETTERS)
    dataset = load_data(f"mnist+letters:{tmp_path}")
    assert dataset.classes == tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert np.array_equal(pixels(dataset.test), np.concatenate([digits, letters]))
    names = [dataset.classes[y] for y in dataset.test.labels]
    assert names == [*map(str, DIGITS), *(chr(64 + y) for y in LETTERS)]


def test_missing_file_names_it_and_the_way_to_get_it(tmp_path):
    with pytest.raises(
        DataError,
        match=r"ubyte \(plain, \.gz or \.xz\) in the folder or its raw subfolder\. .* use 'mnist:' to download",
    ):
        load_data(f"mnist:{tmp_path}")
    with pytest.raises(DataError, match=r"no emnist-letters-train-images-idx3-ubyte .* use 'emnist-letters:'"):
        load_data(f"emnist-letters:{tmp_path}")


@pytest.mark.parametrize("spec", ["mnist", "emnist-letters", "mnist+letters"])
def test_missing_folder_is_named(tmp_path, spec):
    with pytest.raises(DataError, match=r"nowhere': there is no such folder\. Give one that holds (MNIST|EMNIST)/raw"):
        load_data(f"{spec}:{tmp_path / 'nowhere'}")


def test_labels_outside_the_classes_are_an_error(tmp_path):
    write_emnist(tmp_path, "letters", labels=[0, 1, 2])
    with pytest.raises(DataError, match="labels run from 0 to 2, expected 1 to 26"):
        load_data(f"emnist-letters:{tmp_path}")


def test_counts_that_disagree_are_an_error(tmp_path):
    write_mnist(tmp_path, labels=DIGITS)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(
        DataError, match=r"has 40 images but 'train-labels-idx1-ubyte' 39 labels\. Get both files again"
    ):
        load_data(f"mnist:{tmp_path}")


@pytest.mark.parametrize("shape", [(40, 0, 28), (40, 28, 0)])
def test_images_without_pixels_are_an_error(tmp_path, shape):
    write_mnist(tmp_path, labels=DIGITS)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros(shape))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte': its images have no pixels\. Get") as caught:
        load_data(f"mnist:{tmp_path}")
    assert "\n" not in str(caught.value)
