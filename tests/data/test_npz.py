import io
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from convpeft.data import load_data
from convpeft.errors import DataError

RNG = np.random.default_rng(0)


def medmnist(counts: tuple[int, int, int] = (20, 6, 8), **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray | None] = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (count, 9, 7), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def save(path: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez_compressed(path, **arrays)
    return f"npz:{path}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.npz"


def test_official_form_is_read_as_it_is(path):
    arrays = medmnist()
    dataset = load_data(save(path, arrays))
    assert [len(split) for split in dataset.splits().values()] == [20, 6, 8]
    assert np.array_equal(dataset.val.images[3][:, :, 0], arrays["val_images"][3])
    assert dataset.test.labels.tolist() == arrays["test_labels"][:, 0].tolist()
    assert dataset.classes == ("0", "1")


@pytest.mark.promise("C14")
def test_labels_may_be_flat_and_images_coloured(path):
    arrays = medmnist(train_labels=np.arange(20) % 2, train_images=RNG.integers(0, 256, (20, 9, 7, 3), dtype=np.uint8))
    assert load_data(save(path, arrays)).train.images[0].shape == (9, 7, 3)


def test_missing_splits_are_made(path):
    arrays = medmnist(val_images=None, val_labels=None, test_images=None, test_labels=None)
    dataset = load_data(save(path, arrays))
    assert [len(split) for split in dataset.splits().values()] == [14, 2, 4]


@pytest.mark.promise("C14")
def test_labels_with_gaps_are_named_by_themselves(path):
    arrays = medmnist()
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = arrays[f"{split}_labels"] * 5 + 2
    dataset = load_data(save(path, arrays))
    assert dataset.classes == ("2", "7")
    assert dataset.train.labels.tolist() == [0, 1] * 10


def test_class_names_come_from_the_file(path):
    dataset = load_data(save(path, medmnist() | {"classes": np.array(["healthy", "ill", "unclear"])}))
    assert dataset.classes == ("healthy", "ill", "unclear")
    assert "class 'unclear': no images in any split" in dataset.notes


@pytest.mark.promise("C14")
def test_name_without_images_shifts_no_label(path):
    arrays = medmnist()
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = arrays[f"{split}_labels"] * 2
    dataset = load_data(save(path, arrays | {"classes": np.array(["healthy", "unclear", "ill"])}))
    assert [dataset.classes[y] for y in dataset.test.labels[:2]] == ["healthy", "ill"]


def test_array_in_column_order_keeps_its_places(path):
    arrays = medmnist()
    arrays["test_images"] = np.asfortranarray(arrays["test_images"])
    assert np.array_equal(load_data(save(path, arrays)).test.images[2][:, :, 0], arrays["test_images"][2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "has no train_images"),
        ({"val_labels": None}, r"has val_images but no val_labels\. Add them"),
        ({"train_labels": np.zeros((20, 14), int)}, r"shape \(20, 14\), several labels an image. Only one"),
        ({"train_labels": np.full(20, np.nan)}, "float64 with NaN or fractions"),
        ({"train_labels": np.full(20, 0.5)}, "float64 with NaN or fractions"),
        ({"train_labels": np.array(["a"] * 20)}, "expected whole numbers"),
        ({"train_labels": np.zeros(19, int)}, r"20 train_images but 19 train_labels\. Make them agree"),
        ({"train_images": np.zeros((20, 9, 7))}, r"train_images is float64 .* expected uint8"),
        ({"train_images": np.zeros((20, 9), np.uint8)}, "expected uint8"),
        ({"train_images": np.zeros((20, 9, 7, 2), np.uint8)}, "with 1, 3 or 4 channels last"),
        ({"train_images": np.zeros((20, 0, 7), np.uint8)}, "expected uint8"),
        ({"classes": np.array(["one"])}, "labels run from 0 to 1, but classes has 1 names"),
        ({"classes": np.array(["one", "one"])}, "expected a list of distinct names"),
        ({"classes": np.array([1, 2])}, "expected a list of distinct names"),
        ({"classes": np.array(["a", "\x1b[2J"])}, r"class '\\x1b\[2J' is not printable text. Rename the class"),
        ({"classes": np.array(["a", ""])}, "class '' is not printable text"),
        ({"classes": np.array([0x110000, 1], np.uint32).view("<U1")}, "expected a list of distinct names"),
        ({"train_labels": np.full(20, np.inf)}, "train_labels hold inf, which is no label"),
        ({"train_labels": np.full(20, 1e300)}, r"train_labels hold 1e\+300, which is no label"),
        ({"train_labels": np.full(20, 2**64 - 1, np.uint64)}, "which is no label. Number the classes"),
    ],
)
def test_other_form_is_a_named_error(path, changes, message):
    with pytest.raises(DataError, match=message):
        load_data(save(path, medmnist(**changes)))


@pytest.mark.promise("S01")
def test_pickled_objects_are_refused_unread(path):
    np.savez(path, **medmnist(train_labels=None), train_labels=np.array([None] * 20), allow_pickle=True)
    with pytest.raises(DataError, match=r"train_labels.npy holds Python objects\. Save it as plain numbers or text"):
        load_data(f"npz:{path}")


def test_file_that_is_missing_or_no_archive_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.npz': there is no such file\. Give an \.npz file"):
        load_data(f"npz:{tmp_path / 'nowhere.npz'}")
    (tmp_path / "x.npz").write_text("text")
    with pytest.raises(DataError, match=r"x.npz': cannot be read"):
        load_data(f"npz:{tmp_path / 'x.npz'}")


def write_member(path: Path, name: str, shape: tuple[int, ...], content: bytes) -> str:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + content)
    return f"npz:{path}"


@pytest.mark.promise("B03")
def test_bomb_is_refused_before_it_goes_off(path):
    spec = write_member(path, "train_images", (100_000, 28, 28), bytes(78_400_000))
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"claims to hold 78,400,\d+ bytes in a file of"):
        load_data(spec)
    assert time.perf_counter() - start < 1


def test_header_that_claims_more_than_the_member_holds_is_refused(path):
    with pytest.raises(DataError, match=r"claims shape \(1000000, 1000000\), more than it holds\. Get"):
        load_data(write_member(path, "train_images", (10**6, 10**6), bytes(100)))


@pytest.mark.promise("B03")
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_member_packed_in_another_way_is_refused(path, method):
    """These give all that is in a piece at once, whatever the member claims to hold."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("train_images.npy", b"x" * 100)
    with pytest.raises(DataError, match=f"packed in a way that no data set is .number {method}"):
        load_data(f"npz:{path}")


@pytest.mark.promise("S02")
def test_mutated_files_raise_only_our_own_error(path):
    spec = save(path, medmnist())
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        mutated = bytearray(content)
        for place in rng.integers(0, len(content), 2):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        with suppress(DataError):
            load_data(spec)
