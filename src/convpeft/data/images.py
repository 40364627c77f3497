"""Read one image file, of any common mode, as an uint8 array (height, width, channels), or say why not.

The rule for each Pillow mode, so that nothing is guessed in silence:

====================  ==========================================================================================
1, L                  grey, one channel
I;16 (any order)      grey, divided by 257 and rounded: 0..65535 becomes 0..255 and a ramp keeps all 256 levels
I                     the same, since 16-bit files may open so; a value outside 0..65535 is refused
F                     values within [0, 1] times 255, else values within [0, 255] rounded; anything else is refused
P, RGB, YCbCr, CMYK   three channels
LA, PA, RGBA, tRNS    composited on white, as a page would show them: one channel for LA and L, else three
animated              the first frame
EXIF orientation      applied, so that "up" is up
====================  ==========================================================================================
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from convpeft.data.quoting import reason
from convpeft.errors import DataError, plainly

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_SUFFIXES = ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .gif .tif .tiff .webp .ppm .pgm .pbm .pnm"
SUFFIXES = frozenset(_SUFFIXES.split())
MAX_PIXELS = 50_000_000

# Pillow warns about large pictures before our own limit can speak, and warning filters are not thread-safe.
_OPEN_LOCK = threading.Lock()


def read_image(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, BMP, GIF, TIFF, WebP or PPM picture by the rules above.

    Args:
        source: A path, or a binary file open for reading.
        max_pixels: Refuse a larger picture from its header, before anything is decoded.

    Returns:
        uint8 (height, width, channels), 1 channel for grey pictures and 3 for the others.

    Raises:
        DataError: If the file is missing, not a picture of a listed format, damaged, too large, or has
            values that no rule covers. The message names the file.
    """
    with _blaming(source), _open(source, max_pixels) as image:
        return _to_array(image)


class ImageError(DataError):
    """One picture cannot be read; `fault` says why without naming it."""

    def __init__(self, name: str, fault: str, remedy: str) -> None:
        super().__init__(f"image '{plainly(name)}': {fault}. {remedy}")
        self.fault = fault


def find_fault(path: Path, *, decode: bool = False) -> str | None:
    """Say why a picture cannot be read, or None, from its header and its end where that is enough.

    Args:
        path: The file.
        decode: Decode every pixel, which also finds damage in the middle.
    """
    try:
        complete = False
        if not decode:
            with _blaming(path), _open(path, MAX_PIXELS) as image:
                complete = _has_end(path, image.format or "")
        if not complete:
            read_image(path)
    except ImageError as error:
        return error.fault
    return None


def broken_pictures(where: str, broken: Sequence[str], total: int) -> DataError:
    """Make the one-line error that names up to five broken pictures and counts them all."""
    shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5:,} more" if len(broken) > 5 else "")
    return DataError(
        f"{where}: {len(broken):,} of {total:,} pictures cannot be read: {shown}. "
        "Replace or remove them, or load with skip_broken=True."
    )


class _Unreadable(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with a picture and what to do, without its name."""

    def __init__(self, fault: str, remedy: str = "Replace or remove the file.") -> None:
        super().__init__(fault)
        self.remedy = remedy


@contextmanager
def _blaming(source: str | Path | BinaryIO) -> Generator[None]:
    """Turn whatever goes wrong with a picture into one error that names the file."""
    name = str(source if isinstance(source, (str, Path)) else getattr(source, "name", "upload"))
    try:
        yield
    except _Unreadable as error:
        raise ImageError(name, str(error), error.remedy) from None
    # Damaged files make Pillow raise almost anything, from SyntaxError to struct.error.
    except Exception as error:
        raise ImageError(name, f"is damaged ({reason(error)})", "Replace or remove the file.") from error


def _open(source: str | Path | BinaryIO, max_pixels: int) -> PillowImage:
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, (str, Path)):
        _check_file(Path(source))
    try:
        with _OPEN_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise _Unreadable(f"holds no picture that can be read (one of {', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise _Unreadable(f"is far above the limit of {max_pixels:,} pixels", "Scale it down.") from None
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise _Unreadable(f"has {width} x {height} pixels, at most {max_pixels:,} are read", "Scale it down.")
    return image


def _check_file(path: Path) -> None:
    # A named pipe would block for ever, so only regular files are opened.
    if not path.is_file():
        fault = "is a dangling link" if path.is_symlink() else "is not a file" if path.exists() else "does not exist"
        raise _Unreadable(fault, "Give the path of a picture.")
    if path.stat().st_size == 0:
        raise _Unreadable("is empty (0 bytes)")


def _to_array(image: PillowImage) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    image.load()
    with warnings.catch_warnings(), suppress(Exception):
        # Only the orientation tag is of interest: a damaged EXIF block must not cost the picture.
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(np.asarray(image), image.mode)[:, :, None]
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
        image = image.convert("L" if grey else "RGB")
    elif image.mode in ("1", "L"):
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    pixels = np.array(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _scaled(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Bring a 16-bit, 32-bit or float picture to 0..255 by a rule that does not depend on its contrast."""
    exact = values.astype(np.float64)
    low, high = float(exact.min()), float(exact.max())
    if mode == "F":
        if not (low >= 0 and high <= 255):
            raise _Unreadable(
                f"holds float values from {low:g} to {high:g}, expected [0, 1] or [0, 255]",
                "Rescale it and save it as 8 bit.",
            )
        return np.rint(exact * 255 if high <= 1 else exact).astype(np.uint8)
    if low < 0 or high > 65535:
        raise _Unreadable(
            f"holds 32-bit values from {low:.0f} to {high:.0f}, expected 0 to 65535",
            "Rescale it and save it as 8 or 16 bit.",
        )
    return np.rint(exact / 257).astype(np.uint8)


def _has_end(path: Path, file_format: str) -> bool:
    """Say whether the file ends as its format demands; False also where the end says nothing."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(12)
        handle.seek(max(0, size - 12))
        tail = handle.read(12)
    if file_format == "PNG":
        return tail[4:8] == b"IEND"
    if file_format == "JPEG":
        return tail.endswith(b"\xff\xd9")
    if file_format == "GIF":
        return tail.endswith(b"\x3b")
    if file_format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if file_format == "BMP":
        return int.from_bytes(head[2:6], "little") == size
    return False
