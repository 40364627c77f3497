import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_files import class_folders

from convpeft.data import load_data
from convpeft.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from convpeft.errors import DataError

RNG = np.random.default_rng(0)


def batch(labels: list[int], key: bytes) -> tuple[bytes, np.ndarray]:
    """One official batch: 3 x 32 x 32 bytes an image, red first; and the images upright."""
    upright = RNG.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    rows = np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in upright])
    return pickle.dumps({b"data": rows, key: labels}, protocol=2), upright


def cifar10_files() -> tuple[dict[str, bytes], np.ndarray]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    made = {name: batch([*range(10)] * 2, b"labels") for name in names}
    return {f"cifar-10-batches-py/{name}": content for name, (content, _) in made.items()}, made["test_batch"][1]


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pixels(split) -> np.ndarray:
    return np.stack([split.images[i] for i in range(len(split))])


def test_batches_read_upright_with_names(tmp_path):
    files, test_images = cifar10_files()
    write_files(tmp_path, files)
    dataset = load_data(f"cifar10:{tmp_path}")
    assert np.array_equal(pixels(dataset.test), test_images)
    assert [dataset.classes[y] for y in dataset.test.labels[:3]] == ["airplane", "automobile", "bird"]
    assert (len(dataset.train), len(dataset.val)) == (90, 10)


def test_archive_reads_like_its_unpacked_folder(tmp_path):
    files, test_images = cifar10_files()
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    for root in (tmp_path, archive):
        assert np.array_equal(pixels(load_data(f"cifar10:{root}").test), test_images)


def test_cifar100_uses_fine_labels(tmp_path):
    files = {f"cifar-100-python/{name}": batch([*range(100)] * 3, b"fine_labels")[0] for name in ("train", "test")}
    write_files(tmp_path, files)
    dataset = load_data(f"cifar100:{tmp_path}")
    assert dataset.classes[:2] == ("apple", "aquarium_fish")
    assert dataset.test.labels.tolist() == [*range(100)] * 3


def test_class_lists_are_complete_and_in_official_order():
    assert (len(set(CIFAR10_CLASSES)), len(set(CIFAR100_CLASSES))) == (10, 100)
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)


def test_picture_folders_take_official_labels(tmp_path):
    for split in ("train", "test"):
        class_folders(tmp_path / split, {"truck": 4, "cat": 4})
    dataset = load_data(f"cifar10:{tmp_path}")
    assert dataset.classes == CIFAR10_CLASSES
    assert sorted(set(dataset.test.labels.tolist())) == [3, 9]


def test_strange_class_folder_is_an_error(tmp_path):
    class_folders(tmp_path / "train", {"truck": 4, "teapot": 4})
    class_folders(tmp_path / "test", {"truck": 4})
    with pytest.raises(DataError, match="class folder 'teapot' is none of the 10 official classes"):
        load_data(f"cifar10:{tmp_path}")


def test_missing_files_name_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"python.tar.gz or train/CLASS folders\. Put the official archive there, or"):
        load_data(f"cifar10:{tmp_path}")
    with pytest.raises(DataError, match="nowhere': does not exist"):
        load_data(f"cifar100:{tmp_path / 'nowhere'}")


def test_archive_without_a_batch_names_it(tmp_path):
    files, _ = cifar10_files()
    files.pop("cifar-10-batches-py/data_batch_3")
    write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    with pytest.raises(DataError, match=r"has no cifar-10-batches-py/data_batch_3\. Get the official archive again"):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("name", ["../evil", "/evil", "cifar-10-batches-py/../../evil"])
def test_archive_writes_nothing_outside(tmp_path, name):
    files, _ = cifar10_files()
    root = tmp_path / "root"
    root.mkdir()
    write_archive(root / "cifar-10-python.tar.gz", {**files, name: b"x"})
    load_data(f"cifar10:{root}")
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "cifar-10-python.tar.gz"]


def test_archive_with_a_huge_member_is_refused_unread(tmp_path):
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = 1 << 40
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(member.tobuf())
    with pytest.raises(DataError, match="is larger than CIFAR can be"):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({b"labels": [0]}, "has no data of 3,072 bytes an image"),
        ({b"data": np.zeros((1, 5), np.uint8), b"labels": [0]}, "has no data of 3,072 bytes an image"),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
            r"has no labels for its 2 images\. Get the archive again",
        ),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, "its labels are not all 0 to 9"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["0"]}, "its labels are not all 0 to 9"),
    ],
)
def test_wrong_batch_is_a_named_error(tmp_path, table, message):
    files, _ = cifar10_files()
    files["cifar-10-batches-py/data_batch_2"] = pickle.dumps(table, protocol=2)
    write_files(tmp_path, files)
    with pytest.raises(DataError, match=f"file 'data_batch_2': {message}"):
        load_data(f"cifar10:{tmp_path}")


def test_mutated_archives_raise_only_our_own_error(tmp_path):
    files, _ = cifar10_files()
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", {k: v[:2000] for k, v in files.items()})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        mutated = bytearray(content)
        mutated[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutated)
        with pytest.raises(DataError):
            load_data(f"cifar10:{tmp_path}")


def test_archive_that_is_none_is_a_named_error(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot be unpacked \(.*\)\. Get the official archive again\.$") as caught:
        load_data(f"cifar10:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_file_larger_than_any_batch_is_refused_unread(tmp_path):
    write_files(tmp_path, cifar10_files()[0])
    with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("r+b") as file:
        file.truncate(1 << 40)  # a hole, which takes no room on the disk
    with pytest.raises(
        DataError, match=r"data_batch_2': has 1,099,\d+,\d+,776 bytes, too many for CIFAR\. Get"
    ) as caught:
        load_data(f"cifar10:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_header_larger_than_any_of_the_archive_is_refused_unread(tmp_path):
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30  # a header that is read whole before what it is about
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(DataError, match="has a header larger than any of CIFAR's") as caught:
        load_data(f"cifar10:{tmp_path}")
    assert "\n" not in str(caught.value)
