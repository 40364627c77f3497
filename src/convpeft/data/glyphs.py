"""Draw characters from the fonts that matplotlib ships, warped and noisy: a source that is always there.

White on black, 28 x 28, one byte a pixel, as MNIST is. The pictures are the same on every call: each
character and split has its own random stream, so `glyphs:digits` is a part of `glyphs:all`.

Look-alikes are meant to be ambiguous. Every glyph is cut to its outline and drawn at a random size, aspect and
place, so nothing but its shape is left: "s" is a small "S", "l" is an "I" in a face without serifs. Half of the
pictures of 0 and O, of 1, I and l, of 5 and S, and of 2 and Z are drawn as a hasty hand would, somewhere on the way
from their own shape to that of a look-alike, half-way at most. The Mono faces mark their zero, which would give it
away; there a capital O stands in for it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convpeft.data.characters import DIGITS, LOWER, UPPER
from convpeft.data.datasets import Parts, array_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

GLYPH_SETS = {"digits": DIGITS, "letters": (*UPPER, *LOWER), "all": (*DIGITS, *UPPER, *LOWER)}
COUNTS = {"train": 400, "val": 60, "test": 100}
_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
)
_LOOK_ALIKES = ("0O", "1Il", "5S", "2Z")
_HASTY_SHARE = 0.5
_SIZE = 28
_STREAM = 20_170_404
# The master drawing of a glyph: its longer side is 44 of 64 pixels, blurred to serve as a soft outline.
_CANVAS, _MASTER, _BLUR = 64, 44, 1.5


def load_glyphs(name: str) -> Parts:
    """Draw one of the sets "digits", "letters" (upper and lower case) and "all"."""
    classes = GLYPH_SETS[name]
    splits = {
        split: array_split(
            split,
            np.concatenate([_draw(character, split) for character in classes]),
            np.repeat(np.arange(len(classes), dtype=np.int64), count),
        )
        for split, count in COUNTS.items()
    }
    return Parts(classes, splits)


@cache
def _masters(character: str) -> NDArray[np.float32]:
    """Draw a character once in every face, float32 (faces, canvas, canvas) in [0, 1]."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawings: list[NDArray[np.float32]] = []
    for face in _FACES:
        shown = "O" if character == "0" and "Mono" in face else character
        font = ImageFont.truetype(folder / f"{face}.ttf", 2 * _CANVAS, layout_engine=ImageFont.Layout.BASIC)
        page = Image.new("L", (4 * _CANVAS, 4 * _CANVAS))
        ImageDraw.Draw(page).text((_CANVAS, _CANVAS // 2), shown, fill=255, font=font)
        glyph = page.crop(page.getbbox())
        scale = _MASTER / max(glyph.size)
        width, height = (max(1, round(side * scale)) for side in glyph.size)
        canvas = Image.new("L", (_CANVAS, _CANVAS))
        canvas.paste(glyph.resize((width, height)), ((_CANVAS - width) // 2, (_CANVAS - height) // 2))
        blurred = canvas.filter(ImageFilter.GaussianBlur(_BLUR))
        drawings.append(np.asarray(blurred).astype(np.float32) / np.float32(255))
    return np.stack(drawings)


@cache
def _draw(character: str, split: str) -> NDArray[np.uint8]:
    """Draw all pictures of one character and split, uint8 (count, 28, 28)."""
    import torch
    from torch.nn import functional as F

    count = COUNTS[split]
    rng = np.random.default_rng([_STREAM, list(COUNTS).index(split), ord(character)])
    masters = torch.from_numpy(_shapes(character, rng, count))
    grid = torch.from_numpy(_places(rng, count) + _waves(rng, count))
    ink = F.grid_sample(masters[:, None], grid, mode="bilinear", align_corners=False)[:, 0].numpy()
    # A soft threshold on the blurred outline makes strokes thicker or thinner.
    threshold = rng.uniform(0.22, 0.5, (count, 1, 1))
    ink = 1 / (1 + np.exp((threshold - ink) * rng.uniform(9, 18, (count, 1, 1))))
    ink *= rng.uniform(0.7, 1.0, (count, 1, 1))
    ink += rng.uniform(0, 0.1, (count, 1, 1)) * rng.standard_normal(ink.shape, dtype=np.float32)
    pictures = np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8)
    pictures.setflags(write=False)
    return pictures


def _shapes(character: str, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Choose a face for each picture, and for look-alikes how far they lean to another character."""
    faces = rng.integers(len(_FACES), size=count)
    lean = rng.uniform(0, 0.5, count) * (rng.random(count) < _HASTY_SHARE)
    family = next((members for members in _LOOK_ALIKES if character in members), character)
    others = [other for other in family if other != character] or [character]
    other = rng.integers(len(others), size=count)
    theirs = np.stack([_masters(one) for one in others])[other, faces]
    own = _masters(character)[faces]
    return (own + lean[:, None, None] * (theirs - own)).astype(np.float32)


def _places(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Say where each output pixel looks in the master, by a random affine map: (count, 28, 28, 2), x first."""
    half = rng.uniform(12.5, 20, count) / _SIZE
    aspect = np.exp(rng.uniform(-0.22, 0.22, count))
    angle, shear = rng.uniform(-0.26, 0.26, count), rng.uniform(-0.25, 0.25, count)
    width, height = half * aspect, half / aspect
    # Up to three pixels aside, as far as there is room.
    room = np.clip(1.05 - np.stack([width, height], -1), 0, 3.5 / (_SIZE / 2))
    shift = room * rng.uniform(-1, 1, (count, 2))
    axis = (np.arange(_SIZE) + 0.5) * 2 / _SIZE - 1
    x = axis[None, None, :] - shift[:, 0, None, None]
    y = axis[None, :, None] - shift[:, 1, None, None]
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    across, down = cosine * x + sine * y, cosine * y - sine * x
    across = across + shear[:, None, None] * down
    edge = _MASTER / _CANVAS
    places = [across * edge / width[:, None, None], down * edge / height[:, None, None]]
    return np.stack(places, -1).astype(np.float32)


def _waves(rng: np.random.Generator, count: int, knots: int = 4) -> NDArray[np.float32]:
    """Draw smooth random displacements, (count, 28, 28, 2), by bicubic interpolation between a few knots."""
    import torch
    from torch.nn import functional as F

    strength = rng.uniform(0, 0.11, (count, 1, 1, 1))
    coarse = torch.from_numpy((strength * rng.standard_normal((count, 2, knots, knots))).astype(np.float32))
    fine = F.interpolate(coarse, size=(_SIZE, _SIZE), mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1).numpy()
