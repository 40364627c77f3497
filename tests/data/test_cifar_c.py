"""The published files of CIFAR-10-C: severities by rows, classes by labels, and nothing taken on trust."""

import struct

import numpy as np
import pytest

from convpeft.data import load_data
from convpeft.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from convpeft.data.cifar_c import open_cifar_c
from convpeft.errors import DataError

COUNT = 3
LABELS = np.tile(np.array([3, 8, 0], np.uint8), 5)


def write(root, *, labels=LABELS, **files):
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "labels.npy", labels)
    for name, images in files.items():
        np.save(root / f"{name}.npy", images)
    return root


def numbered(start: int = 0) -> np.ndarray:
    """Fifteen images, each of one level."""
    levels = np.arange(start, start + 5 * COUNT, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (5 * COUNT, 32, 32, 3)).copy()


def test_severity_is_its_own_rows(tmp_path):
    files = open_cifar_c(write(tmp_path, fog=numbered(), snow=numbered(100)))
    assert (files.names, files.count, files.classes) == (("snow", "fog"), COUNT, CIFAR10_CLASSES)
    split = files.split("fog", 4)
    assert [int(split.images[i].max()) for i in range(COUNT)] == [9, 10, 11]
    assert split.labels.tolist() == [3, 8, 0]
    assert split.ids[0] == "fog/4/0"
    assert [int(files.split("snow", 1).images[i].min()) for i in range(COUNT)] == [100, 101, 102]


def test_files_are_mapped_and_not_read(tmp_path):
    files = open_cifar_c(write(tmp_path, fog=numbered()))
    assert all(isinstance(array, np.memmap) and array.mode == "r" for array in files.arrays)


def test_labels_above_nine_are_those_of_cifar100(tmp_path):
    assert open_cifar_c(write(tmp_path, labels=np.full(15, 10), fog=numbered())).classes == CIFAR100_CLASSES


def test_source_gives_all_images_as_one_test_split(tmp_path):
    dataset = load_data(f"cifar-c:{write(tmp_path, fog=numbered(), snow=numbered(100))}", whole=True)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (0, 0, 30)
    levels = [int(dataset.test.images[i].max()) for i in (0, 14, 15, 29)]
    assert levels == [100, 114, 0, 14]  # snow stands before fog in the published order
    assert dataset.test.labels.tolist() == LABELS.tolist() * 2
    part = dataset.test.subset(np.array([29, 0]))
    assert (int(part.images[0].max()), part.ids) == (14, ("fog/5/2", "snow/1/0"))
    assert len(dataset.split("all")) == 30


def test_source_is_for_measuring_only(tmp_path):
    with pytest.raises(DataError, match="has no training images"):
        load_data(f"cifar-c:{write(tmp_path, fog=numbered())}")


@pytest.mark.parametrize("missing", ["labels", "fog"])
def test_folder_without_the_files_is_refused(tmp_path, missing):
    write(tmp_path, fog=numbered())
    (tmp_path / f"{missing}.npy").unlink()
    with pytest.raises(DataError, match=r"holds no labels\.npy with files such as fog\.npy\. Unpack the archive"):
        open_cifar_c(tmp_path)


def test_corruption_without_a_file_is_named(tmp_path):
    files = open_cifar_c(write(tmp_path, fog=numbered()))
    with pytest.raises(DataError, match=r"has no file rain\.npy\. It has fog: leave the others out"):
        files.split("rain", 1)


@pytest.mark.parametrize(
    "images",
    [numbered()[:14], numbered().astype(np.int8), numbered()[..., :1], np.zeros((15, 32, 32, 3), np.float32)],
)
def test_images_of_another_form_are_refused(tmp_path, images):
    with pytest.raises(DataError, match=r"expected uint8 \(15, 32, 32, 3\) by its labels\.npy"):
        open_cifar_c(write(tmp_path, fog=images))


@pytest.mark.parametrize("labels", [LABELS[:14], LABELS.astype(float), LABELS.reshape(3, 5), LABELS[:0]])
def test_labels_of_another_form_are_refused(tmp_path, labels):
    with pytest.raises(DataError, match="expected whole numbers, one an image of five severities"):
        open_cifar_c(write(tmp_path, labels=labels, fog=numbered()))


def test_labels_out_of_range_are_refused(tmp_path):
    for wrong in (np.full(15, 100), np.full(15, -1)):
        with pytest.raises(DataError, match=r"holds labels from .* CIFAR's are 0 to 9 or 0 to 99"):
            open_cifar_c(write(tmp_path, labels=wrong, fog=numbered()))


def test_labels_that_differ_between_severities_are_refused(tmp_path):
    wrong = LABELS.copy()
    wrong[7] = 1
    with pytest.raises(DataError, match="the five severities have not the same labels"):
        open_cifar_c(write(tmp_path, labels=wrong, fog=numbered()))


def test_pickled_objects_are_refused_unread(tmp_path):
    write(tmp_path, fog=numbered())
    np.save(tmp_path / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"holds Python objects or columns first\. Get the published file again"):
        open_cifar_c(tmp_path)


def test_columns_first_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds Python objects or columns first"):
        open_cifar_c(write(tmp_path, fog=np.asfortranarray(numbered())))


def header(text: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04 a zip",
        header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (15, 32, 32, 3"),
        header(b"__import__('os').system('touch hacked')\n"),
        header(b"(" * 3000),
        header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (15, 32, 32, 3), }" + b" " * 9000),
        b"\x93NUMPY\x09\x00" + bytes(64),
    ],
)
def test_hostile_header_is_refused(tmp_path, content):
    write(tmp_path, fog=numbered())
    (tmp_path / "fog.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"fog\.npy': is no \.npy file"):
        open_cifar_c(tmp_path)
    assert not list(tmp_path.glob("**/hacked"))


@pytest.mark.parametrize("change", [-1, 1])
def test_file_of_another_length_than_its_header_tells_is_refused(tmp_path, change):
    write(tmp_path, fog=numbered())
    content = (tmp_path / "fog.npy").read_bytes()
    (tmp_path / "fog.npy").write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(DataError, match=r"has 46,\d+ bytes, its header tells of 46,208"):
        open_cifar_c(tmp_path)


def test_labels_file_too_large_is_refused_unread(tmp_path):
    write(tmp_path, fog=numbered())
    with (tmp_path / "labels.npy").open("r+b") as handle:
        handle.truncate(17 << 20)
    with pytest.raises(DataError, match="bytes, too many for labels of CIFAR"):
        open_cifar_c(tmp_path)
