import io
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convpeft.data import read_image
from convpeft.data.images import MAX_PIXELS, find_fault
from convpeft.errors import DataError
from measuring import measured


def saved(tmp_path: Path, image: Image.Image, name: str = "x.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def bomb(side: int) -> bytes:
    """A tiny PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.promise("B01")
def test_grey_picture_keeps_its_values_and_one_channel(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(pixels)))[:, :, 0], pixels)


@pytest.mark.promise("B01")
def test_one_bit_picture_becomes_black_and_white(tmp_path):
    image = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert read_image(saved(tmp_path, image))[:, :, 0].tolist() == [[0, 255], [255, 0]]


@pytest.mark.promise("B01")
def test_palette_picture_shows_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert read_image(saved(tmp_path, image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.promise("B01")
def test_cmyk_picture_becomes_rgb(tmp_path):
    found = read_image(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg", quality=100))
    assert found.shape == (8, 8, 3)
    assert np.abs(found[4, 4].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.promise("B01")
def test_transparent_colour_is_composited_on_white(tmp_path):
    found = read_image(saved(tmp_path, Image.new("RGBA", (1, 1), (200, 0, 0, 51))))
    expected = [200 * 0.2 + 255 * 0.8, 255 * 0.8, 255 * 0.8]
    assert np.abs(found[0, 0] - np.array(expected)).max() <= 1


@pytest.mark.promise("B01")
def test_transparent_grey_is_composited_on_white_in_one_channel(tmp_path):
    assert read_image(saved(tmp_path, Image.new("LA", (1, 1), (0, 0)))).tolist() == [[[255]]]


@pytest.mark.promise("B01")
def test_transparent_palette_entry_is_composited_on_white(tmp_path):
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    assert read_image(saved(tmp_path, image, transparency=0)).tolist() == [[[255, 255, 255]]]


@pytest.mark.promise("B01")
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_ramp_keeps_its_levels(tmp_path, mode):
    ramp = np.arange(65536).reshape(256, 256)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (256, 256), ramp.astype(dtype).tobytes())
    found = read_image(saved(tmp_path, image, "x.tif"))[:, :, 0]
    measured("levels of a 16-bit ramp", len(np.unique(found)))
    assert len(np.unique(found)) >= 250
    assert np.abs(found - ramp / 257).max() <= 0.5


@pytest.mark.promise("B01")
def test_sixteen_bit_png_keeps_its_levels(tmp_path):
    ramp = np.arange(0, 65536, 64, dtype=np.uint16)[None]
    assert len(np.unique(read_image(saved(tmp_path, Image.fromarray(ramp))))) >= 250


@pytest.mark.promise("B01")
def test_wide_integers_are_refused_with_the_remedy(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[70000]], dtype=np.int32)), "x.tif")
    with pytest.raises(DataError, match=r"32-bit values from 70000 to 70000, expected 0 to 65535. Rescale it"):
        read_image(path)


@pytest.mark.promise("B01")
@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.4, 255.0], [0, 100, 255])]
)
def test_float_picture_is_read_by_its_range(tmp_path, values, expected):
    path = saved(tmp_path, Image.fromarray(np.array([values], dtype=np.float32)), "x.tif")
    assert read_image(path)[0, :, 0].tolist() == expected


@pytest.mark.promise("B01")
@pytest.mark.parametrize("value", [-1.0, 256.0, float("nan")])
def test_float_picture_outside_both_ranges_is_refused(tmp_path, value):
    path = saved(tmp_path, Image.fromarray(np.array([[0, value]], dtype=np.float32)), "x.tif")
    with pytest.raises(DataError, match="holds float values"):
        read_image(path)


@pytest.mark.promise("B01")
def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.array([[0, 80, 160]], dtype=np.uint8)
    found = read_image(saved(tmp_path, Image.fromarray(pixels), exif=exif))
    assert np.array_equal(found[:, :, 0], np.rot90(pixels, -1))


@pytest.mark.promise("B01")
def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (3, 3), value) for value in (10, 200)]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert np.unique(read_image(path)).tolist() == [10]


def test_open_file_is_read_like_a_path(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (2, 3), (1, 2, 3)))
    assert np.array_equal(read_image(io.BytesIO(path.read_bytes())), read_image(path))


def test_large_picture_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(13_000))
    with pytest.raises(DataError, match=r"bomb.png': has 13000 x 13000 pixels, at most 50,000,000 are read"):
        read_image(path)


def test_huge_picture_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(40_000))
    with pytest.raises(DataError, match=r"bomb.png': is far above the limit of 50,000,000 pixels"):
        read_image(path)


def test_limit_is_at_most_and_not_below(tmp_path):
    path = saved(tmp_path, Image.new("L", (10, 10)))
    assert read_image(path, max_pixels=100).shape == (10, 10, 1)
    with pytest.raises(DataError, match="at most 99 are read"):
        read_image(path, max_pixels=99)
    assert MAX_PIXELS == 50_000_000


def broken_files(tmp_path: Path) -> dict[str, Path]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    found: dict[str, Path] = {}
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm"):
        whole = saved(tmp_path, noise, f"whole.{suffix}").read_bytes()
        found[f"truncated {suffix}"] = tmp_path / f"cut.{suffix}"
        found[f"truncated {suffix}"].write_bytes(whole[: len(whole) * 2 // 3])
    found["text"] = tmp_path / "text.png"
    found["text"].write_text("not a picture")
    found["empty"] = tmp_path / "empty.png"
    found["empty"].touch()
    found["dangling link"] = tmp_path / "dangling.png"
    found["dangling link"].symlink_to(tmp_path / "nowhere.png")
    found["missing"] = tmp_path / "missing.png"
    found["folder"] = tmp_path / "folder.png"
    found["folder"].mkdir()
    found["pipe"] = tmp_path / "pipe.png"
    os.mkfifo(found["pipe"])
    return found


@pytest.mark.promise("B02")
def test_every_broken_file_is_named_without_decoding_the_good_ones(tmp_path):
    faults = {name: find_fault(path) for name, path in broken_files(tmp_path).items()}
    assert [name for name, fault in faults.items() if fault is None] == []


def test_whole_files_of_every_format_have_no_fault(tmp_path):
    broken_files(tmp_path)
    whole = sorted(tmp_path.glob("whole.*"))
    assert len(whole) == 7
    assert [path for path in whole if find_fault(path) or find_fault(path, decode=True)] == []


@pytest.mark.promise("B02")
def test_reading_a_broken_file_raises_one_line_that_names_it(tmp_path):
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value)


@pytest.mark.promise("B02")
def test_damage_in_the_middle_is_found_by_decoding(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    path = saved(tmp_path, noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert find_fault(path) is None
    assert "is damaged" in (find_fault(path, decode=True) or "")


def test_mutated_files_raise_only_our_own_error(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        content = saved(tmp_path, noise, f"x.{suffix}").read_bytes()
        for _ in range(60):
            mutated = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                mutated[place] = rng.integers(256)
            with suppress(DataError):
                read_image(io.BytesIO(mutated))


@pytest.mark.parametrize("form", ["PCX", "TGA", "ICO", "EPS"])
def test_format_that_is_not_listed_is_refused(tmp_path, form):
    path = saved(tmp_path, Image.new("RGB", (32, 32)), format=form)  # under the name of a PNG
    with pytest.raises(DataError, match=r"x\.png': holds no picture that can be read \(one of PNG, JPEG"):
        read_image(path)


def test_sixteen_bit_picture_is_not_stretched(tmp_path):
    dark = np.array([[1000, 2000, 3000]], dtype=np.uint16)
    assert read_image(saved(tmp_path, Image.fromarray(dark)))[0, :, 0].tolist() == [4, 8, 12]
