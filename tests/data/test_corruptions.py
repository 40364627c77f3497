"""Every corruption against a formula, another library, or what it must do to an image."""

import colorsys
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from convpeft.data.corruptions import ALL, COMMON, EXTRA, RAIN, TABLES, choose_table, read_names, read_severities
from convpeft.data.corruptions.blur import disk
from convpeft.data.corruptions.corrupting import corrupt
from convpeft.data.corruptions.motion import blur_along, line_weights
from convpeft.data.corruptions.plasma import plasma
from convpeft.data.corruptions.zoom import zoom
from convpeft.errors import DataError, OptionError

SEVERITIES = (1, 2, 3, 4, 5)
# Colour goes down and then up; the corners move less while the field moves more; glass of severity 3 is softer than
# that of 4, which shuffles twice; water comes before mud; frost dims what it adds to.
NOT_MONOTONE = {"saturate", "elastic_transform", "glass_blur", "spatter", "frost"}
ROUNDING = 0.5  # of a level


def picture(height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Soft shapes with all levels, none of them near black or white in excess."""
    rng = np.random.default_rng(seed)
    planes = [ndimage.gaussian_filter(rng.normal(size=(height, width)), 2.5, mode="wrap") for _ in range(channels)]
    image = np.stack(planes, axis=2)
    return np.clip(128 + 55 * image / image.std(), 0, 255).astype(np.uint8)


IMAGE = picture()


def flat(level: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), level, dtype=np.uint8)


def samples(name: str, severity: int, level: int, table: str) -> np.ndarray:
    """Many numbers of a flat image under noise, from 0 to 1."""
    image = flat(level)
    return np.stack([corrupt(image, name, severity, index=i, table=table) for i in range(20)]) / 255


@pytest.mark.parametrize("table", sorted(TABLES))
def test_table_has_five_severities_of_every_corruption(table):
    assert set(TABLES[table]) == set(ALL)
    assert len(ALL) == 20
    for levels in TABLES[table].values():
        assert len(levels) == 5
        assert len({len(constants) for constants in levels}) == 1


def test_names_are_those_of_the_published_files():
    assert (len(COMMON), len(EXTRA), RAIN) == (15, 4, "rain")
    assert (*COMMON, *EXTRA, RAIN) == ALL


@pytest.mark.parametrize(
    ("table", "name", "fifth"),
    [
        ("cifar", "gaussian_noise", (0.10,)),
        ("imagenet", "gaussian_noise", (0.38,)),
        ("cifar", "jpeg_compression", (40,)),
        ("imagenet", "jpeg_compression", (7,)),
        ("cifar", "fog", (1.5, 1.75)),
        ("imagenet", "fog", (3, 1.4)),
        ("cifar", "snow", (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
        ("imagenet", "motion_blur", (20, 15)),
    ],
)
def test_strongest_constants_are_the_published_ones(table, name, fifth):
    assert TABLES[table][name][4] == pytest.approx(fifth)


def test_table_follows_the_size_or_the_name():
    assert [choose_table((side, side)) for side in (28, 64, 65, 224)] == ["cifar", "cifar", "imagenet", "imagenet"]
    assert choose_table((224, 224), "cifar") == "cifar"
    with pytest.raises(OptionError, match=r"severity table 'cifr' does not exist\. Did you mean 'cifar'"):
        choose_table((32, 32), "cifr")


def test_names_are_read_between_commas():
    assert read_names("rain, fog,fog") == ("fog", "rain")
    assert read_names("common") == COMMON
    assert read_names("jpeg-compression") == ("jpeg_compression",)
    with pytest.raises(OptionError, match=r"corruption 'rnai' does not exist\. Did you mean 'rain'"):
        read_names("fog,rnai")


def test_severities_are_read_between_commas():
    assert read_severities("5, 1") == (1, 5)
    with pytest.raises(OptionError, match=r"severity '6' does not exist\. Write some of 1,2,3,4,5"):
        read_severities("1,6")


@pytest.mark.parametrize("name", ALL)
def test_same_corruption_severity_and_index_give_the_same_bytes_in_any_order(name):
    first = [corrupt(IMAGE, name, severity, index=7) for severity in SEVERITIES]
    for severity in reversed(SEVERITIES):
        corrupt(IMAGE, "fog", severity, index=severity)
        assert np.array_equal(corrupt(IMAGE, name, severity, index=7), first[severity - 1])


def test_another_process_makes_the_same_bytes():
    program = (
        "import hashlib, sys, numpy as np\n"
        "from convpeft.data.corruptions import ALL\n"
        "from convpeft.data.corruptions.corrupting import corrupt\n"
        "image = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(32, 32, 3)\n"
        "made = b''.join(corrupt(image, name, 3, index=5).tobytes() for name in reversed(ALL))\n"
        "print(hashlib.sha256(made).hexdigest())\n"
    )
    digests = {
        subprocess.run([sys.executable, "-c", program], input=IMAGE.tobytes(), capture_output=True, check=True).stdout
        for _ in range(2)
    }
    import hashlib

    here = hashlib.sha256(b"".join(corrupt(IMAGE, name, 3, index=5).tobytes() for name in reversed(ALL))).hexdigest()
    assert digests == {f"{here}\n".encode()}


@pytest.mark.parametrize("name", sorted(set(ALL) - {"brightness", "contrast", "saturate", "pixelate"}))
def test_index_matters_where_there_is_chance(name):
    same = ("defocus_blur", "zoom_blur", "jpeg_compression", "gaussian_blur")
    pair = [corrupt(IMAGE, name, 5, index=index) for index in (0, 1)]
    assert np.array_equal(*pair) == (name in same)


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("name", ALL)
def test_image_keeps_form_and_source_bytes(name, table):
    image = picture(40, 36)
    before = image.copy()
    for severity in SEVERITIES:
        found = corrupt(image, name, severity, index=0, table=table)
        assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)
    assert not np.array_equal(found, image)


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("name", sorted(set(ALL) - NOT_MONOTONE))
def test_distance_from_the_image_grows_with_the_severity(name, table):
    side = 32 if table == "cifar" else 72
    images = [picture(side, side, seed=seed) for seed in range(12)]
    means = [
        np.mean([np.abs(corrupt(im, name, s, index=i, table=table) - im.astype(float)) for i, im in enumerate(images)])
        for s in SEVERITIES
    ]
    assert means == sorted(means)
    assert means[4] > 1.3 * means[0] > 0


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_mean_and_deviation(table, severity):
    found = samples("gaussian_noise", severity, 128, table)
    (deviation,) = TABLES[table]["gaussian_noise"][severity - 1]
    inner = np.abs(found - 128 / 255) < 0.4  # cut off at black and white, most of all at the highest severity
    limits = np.clip(np.random.default_rng(0).normal(128 / 255, deviation, 10**6), 0, 1)
    assert found.mean() == pytest.approx(128 / 255, abs=0.003)
    assert found.std() == pytest.approx(limits.std(), rel=0.01)
    assert inner.any()


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("severity", [1, 5])
def test_shot_noise_has_the_mean_and_variance_of_counted_photons(table, severity):
    level = 0.2 if table == "imagenet" else 0.4
    found = samples("shot_noise", severity, round(255 * level), table)
    (photons,) = TABLES[table]["shot_noise"][severity - 1]
    x = round(255 * level) / 255
    counts = np.arange(200)
    logs = counts * np.log(x * photons) - x * photons - np.array([np.sum(np.log(np.arange(1, k + 1))) for k in counts])
    shares, values = np.exp(logs), np.clip(counts / photons, 0, 1)
    if photons * x < 100:  # the sum over counts is the whole distribution
        mean = (shares * values).sum()
        assert found.mean() == pytest.approx(mean, rel=0.01)
        assert found.var() == pytest.approx((shares * (values - mean) ** 2).sum(), rel=0.03)
    else:
        assert found.mean() == pytest.approx(x, rel=0.01)
        assert found.var() == pytest.approx(x / photons, rel=0.03)


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_sets_its_share_half_black_half_white(table, severity):
    found = samples("impulse_noise", severity, 100, table)
    (share,) = TABLES[table]["impulse_noise"][severity - 1]
    assert (found == 0).mean() == pytest.approx(share / 2, rel=0.08)
    assert (found == 1).mean() == pytest.approx(share / 2, rel=0.08)
    assert ((found == 0) | (found == 1) | (found == 100 / 255)).all()


def test_speckle_noise_grows_with_the_light():
    dark, light = (samples("speckle_noise", 5, level, "cifar").std() for level in (50, 120))
    assert dark == pytest.approx(0.2 * 50 / 255, rel=0.02)
    assert light == pytest.approx(0.2 * 120 / 255, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_that_of_colorsys(severity):
    (more,) = TABLES["cifar"]["brightness"][severity - 1]
    for pixel, made in zip(
        IMAGE.reshape(-1, 3)[::7], corrupt(IMAGE, "brightness", severity, index=0).reshape(-1, 3)[::7], strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(1, value + more))
        assert np.abs(made - 255 * np.array(wanted)).max() <= ROUNDING + 1e-9


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_is_that_of_colorsys(severity):
    factor, more = TABLES["cifar"]["saturate"][severity - 1]
    image = IMAGE.copy()
    image[0] = image[0, :, :1]  # grey pixels have the hue 0
    image[0, 0] = 0
    for pixel, made in zip(
        image.reshape(-1, 3)[::5], corrupt(image, "saturate", severity, index=0).reshape(-1, 3)[::5], strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        wanted = colorsys.hsv_to_rgb(hue, min(1, max(0, saturation * factor + more)), value)
        assert np.abs(made - 255 * np.array(wanted)).max() <= ROUNDING + 1e-9


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_that_of_pillow_for_a_grey_image(severity):
    """Pillow takes the rounded mean, so a level of difference is left."""
    grey = picture(channels=1)
    (kept,) = TABLES["cifar"]["contrast"][severity - 1]
    wanted = np.asarray(ImageEnhance.Contrast(Image.fromarray(grey[..., 0])).enhance(kept), dtype=float)
    assert np.abs(corrupt(grey, "contrast", severity, index=0)[..., 0] - wanted).max() <= 1.01


def test_contrast_keeps_the_mean_of_each_channel():
    found = corrupt(IMAGE, "contrast", 5, index=0)
    assert np.allclose(found.mean((0, 1)), IMAGE.mean((0, 1)), atol=0.2)
    assert np.allclose(found.std((0, 1)), 0.15 * IMAGE.std((0, 1)), rtol=0.03)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows_of_that_quality(severity, channels):
    image = picture(channels=channels)
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    wanted = np.asarray(Image.open(stream)).reshape(image.shape)
    assert np.array_equal(corrupt(image, "jpeg_compression", severity, index=0), wanted)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_a_resize_with_boxes(severity):
    image = picture(24, 32)
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    small = Image.fromarray(image).resize((int(32 * share), int(24 * share)), Image.Resampling.BOX)
    wanted = np.asarray(small.resize((32, 24), Image.Resampling.BOX))
    assert np.array_equal(corrupt(image, "pixelate", severity, index=0), wanted)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_weights_of_blurs_sum_to_one(table):
    for constants in TABLES[table]["defocus_blur"]:
        assert disk(*constants).sum() == pytest.approx(1)
        assert (disk(*constants) >= 0).all()
    for constants in TABLES[table]["motion_blur"]:
        assert line_weights(*constants).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "elastic_transform"]
)
def test_blur_and_stretch_leave_a_flat_image_alone(name):
    for table in TABLES:
        assert np.array_equal(corrupt(flat(77), name, 5, index=0, table=table), flat(77))


def test_zoom_is_that_of_scipy():
    image = picture(33, 33).astype(float)
    for factor in (1.0, 1.07, 1.25):
        kept = int(np.ceil(33 / factor))
        first = (33 - kept) // 2
        cut = image[first : first + kept, first : first + kept]
        large = ndimage.zoom(cut, (factor, factor, 1), order=1)
        start = (len(large) - 33) // 2
        assert np.allclose(zoom(image, factor), large[start : start + 33, start : start + 33])


def test_motion_goes_along_its_line_from_the_pixel_on():
    image = np.zeros((21, 21, 1))
    image[10, 10] = 1
    for degrees, (down, right) in {0: (0, -1), 90: (-1, 0), -90: (1, 0), 45: (-1, -1)}.items():
        weights, blurred = line_weights(2, 1), blur_along(image, 2, 1, degrees)[..., 0]
        reach = 3 if abs(degrees) == 45 else 5  # slanted, five pixels of length reach over fewer rows
        found = [blurred[10 + step * down, 10 + step * right] for step in range(reach)]
        assert found[0] == pytest.approx(weights[0], abs=1e-9)
        assert np.all(np.diff(found) < 0)
        assert blurred.sum() == pytest.approx(1)


def test_glass_takes_every_pixel_from_a_near_one():
    """With hardly any blur: the places of severity 1 are those up and left of each pixel."""
    image = np.arange(32 * 32, dtype=float).reshape(32, 32)
    rows, columns = np.divmod(np.arange(32 * 32), 32)
    colour = np.stack([rows, columns, 0 * rows], axis=1).reshape(32, 32, 3).astype(np.uint8) * 8
    found = corrupt(colour, "glass_blur", 1, index=0).astype(int) // 8
    moves = np.stack([image // 32, image % 32], axis=2) - found[..., :2]
    assert set(np.unique(moves)) == {0, 1}
    assert 0.4 < moves[2:32, 2:32].mean() < 0.6
    assert not moves[:2].any() and not moves[:, :2].any()


def test_plasma_fills_its_range_and_has_hills():
    clouds = plasma(30, 2.0, np.random.default_rng(0))
    assert clouds.shape == (32, 32)
    assert (clouds.min(), clouds.max()) == (0, 1)
    neighbours = np.abs(np.diff(clouds, axis=0)).mean()
    assert (
        neighbours < 0.3 * np.abs(clouds - np.random.default_rng(1).permutation(clouds.ravel()).reshape(32, 32)).mean()
    )


def test_fog_keeps_the_range_and_takes_contrast():
    found = corrupt(IMAGE, "fog", 3, index=0)
    assert found.max() <= IMAGE.max()
    assert found.std() < 0.8 * IMAGE.std()


@pytest.mark.parametrize("name", ["snow", "frost"])
def test_snow_and_frost_make_a_dark_image_lighter(name):
    for table in TABLES:
        found = corrupt(flat(30), name, 5, index=0, table=table)
        assert found.mean() > 60
        assert found.std() > 10


def test_frost_adds_more_at_the_highest_severity():
    for table, black in (("cifar", flat(0, 32)), ("imagenet", flat(0, 72))):
        means = [np.mean([corrupt(black, "frost", s, index=i, table=table) for i in range(40)]) for s in SEVERITIES]
        assert means[4] > 1.4 * means[0] > 0  # 0.45 and 0.2 of a pattern, 0.75 and 0.4


def test_frost_is_bluish_and_differs_from_piece_to_piece():
    pieces = [corrupt(flat(0, 32), "frost", 5, index=index) for index in range(8)]
    assert all(piece[..., 2].mean() > piece[..., 0].mean() for piece in pieces)
    assert len({piece.tobytes() for piece in pieces}) == 8


def test_rain_falls_in_streaks_that_are_longer_than_wide():
    for table, side in (("cifar", 64), ("imagenet", 128)):
        found = np.mean([corrupt(flat(60, side), "rain", 5, index=i, table=table)[..., 0] for i in range(1)], axis=0)
        down = np.corrcoef(found[:-2].ravel(), found[2:].ravel())[0, 1]
        across = np.corrcoef(found[:, :-2].ravel(), found[:, 2:].ravel())[0, 1]
        assert down > 0.35
        assert down > across + 0.2


def test_spatter_is_turquoise_water_and_then_brown_mud():
    image = flat(120)
    water = corrupt(image, "spatter", 3, index=0).astype(int) - 120
    assert (water >= 0).all() and (water > 20).any()
    assert water[..., 1].sum() > water[..., 0].sum()
    mud = corrupt(image, "spatter", 5, index=0).astype(int) - 120
    assert (mud <= 0).all() and (mud < -40).any()
    assert mud[..., 2].sum() < mud[..., 0].sum()


@pytest.mark.parametrize("name", sorted(set(ALL) - {"saturate"}))
def test_grey_image_stays_of_one_channel(name):
    grey = picture(channels=1)
    found = corrupt(grey, name, 5, index=0)
    assert found.shape == grey.shape
    assert not np.array_equal(found, grey)
    assert np.array_equal(corrupt(grey[..., 0], name, 5, index=0), found[..., 0])


@pytest.mark.parametrize(
    "name",
    sorted(
        set(ALL)
        - {
            "gaussian_noise",
            "shot_noise",
            "impulse_noise",
            "speckle_noise",
            "frost",
            "spatter",
            "saturate",
            "jpeg_compression",
        }
    ),
)
def test_grey_image_of_three_channels_gets_no_colour(name):
    """Noise, ice and drops have a colour of their own."""
    grey = np.repeat(picture(channels=1), 3, axis=2)
    found = corrupt(grey, name, 5, index=0).astype(int)
    assert np.ptp(found, axis=2).max() <= 1
    assert np.abs(found[..., :1] - corrupt(grey[..., :1], name, 5, index=0)).max() <= 1


def test_saturation_of_a_grey_image_is_none():
    grey = picture(channels=1)
    assert all(np.array_equal(corrupt(grey, "saturate", s, index=0), grey) for s in SEVERITIES)


@pytest.mark.parametrize("name", ALL)
def test_smallest_image_is_corrupted(name):
    for side in (1, 2, 5, 9):
        assert corrupt(picture(side, side + 1), name, 5, index=0).shape == (side, side + 1, 3)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8), np.zeros(8, np.uint8)]
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(DataError, match=r"corrupt: expected uint8 \(height, width, 1 or 3\), got"):
        corrupt(image, "fog", 1, index=0)


def test_severity_out_of_range_is_refused():
    with pytest.raises(OptionError, match=r"severity=6 is out of range\. Pass a whole number from 1 to 5"):
        corrupt(IMAGE, "fog", 6, index=0)
    with pytest.raises(OptionError, match=r"corruption 'fgo' does not exist\. Did you mean 'fog'"):
        corrupt(IMAGE, "fgo", 1, index=0)
