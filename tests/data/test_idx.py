import gzip
import io
import lzma
import struct
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from data_files import idx_bytes, write_idx

from convpeft.data.idx import read_idx
from convpeft.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_packed_and_plain_files_read_alike(tmp_path, pack):
    suffix = {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz"}[pack]
    (tmp_path / f"x{suffix}").write_bytes(pack(idx_bytes(IMAGES)))
    assert np.array_equal(read_idx(tmp_path / f"x{suffix}", dimensions=3), IMAGES)


def test_member_of_a_zip_is_read_where_it_lies(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("gzip/images.gz", gzip.compress(idx_bytes(IMAGES)))
    assert np.array_equal(read_idx(tmp_path / "x.zip", dimensions=3, member="gzip/images.gz"), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"starts with nothing, expected 00000803 \(unsigned bytes, 3 axes\)\. Get the file again"),
        (b"\0\0\x0d\x03" + bytes(12), "starts with 00000d03"),
        (b"\0\0\x08\x01" + bytes(4), "starts with 00000801"),
        (b"\0\0\x08\x03\0\0", "ends inside its header"),
        (idx_bytes(IMAGES)[:-1], "holds 59 bytes, its header says 60"),
        (idx_bytes(IMAGES) + b"x", "holds more bytes, its header says 60"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**10, 2**10), "claims to hold"),
    ],
)
def test_damaged_file_is_a_named_error(tmp_path, content, message):
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(tmp_path / "images", dimensions=3)
    assert str(tmp_path / "images") in str(caught.value)


def test_missing_file_is_a_named_error(tmp_path):
    with pytest.raises(DataError, match="nowhere': cannot be read"):
        read_idx(tmp_path / "nowhere", dimensions=3)


@pytest.mark.promise("B03")
def test_packed_zeros_are_refused_before_they_are_unpacked(tmp_path):
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as packed:
        packed.write(b"\0\0\x08\x03" + struct.pack(">3I", 100_000, 32, 32))
    (tmp_path / "x.gz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="claims to hold 102,400,000 bytes"):
        read_idx(tmp_path / "x.gz", dimensions=3)


@pytest.mark.promise("B03")
def test_member_packed_in_another_way_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("images", idx_bytes(IMAGES))
    with pytest.raises(DataError, match=r"packed in a way that no data set is \(number 12\)"):
        read_idx(tmp_path / "x.zip", dimensions=3, member="images")


@pytest.mark.promise("S02")
def test_mutated_files_raise_only_our_own_error(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("", ".gz"):
        path = write_idx(tmp_path / f"x{suffix}", IMAGES)
        content = path.read_bytes()
        for _ in range(150):
            mutated = bytearray(content)
            mutated[rng.integers(min(len(content), 24))] = rng.integers(256)
            path.write_bytes(mutated)
            with suppress(DataError):
                read_idx(path, dimensions=3)
