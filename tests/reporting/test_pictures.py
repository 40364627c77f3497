import numpy as np
import pytest

from convpeft.errors import OptionError
from convpeft.reporting import figure_bytes, plot_confusion, plot_gallery

HOSTILE = ["$\\frac{", "a\nb\x00", "\udcff\u202e", "日本語", "x" * 500, "<script>"]


def matrix(size, seed=0):
    return np.random.default_rng(seed).integers(0, 50, (size, size)) + np.eye(size, dtype=np.int64) * 200


@pytest.mark.parametrize("size", [1, 2, 15, 16, 62, 101])
def test_confusion_of_any_size_renders(size):
    names = [f"class {number}" for number in range(size)]
    assert figure_bytes(plot_confusion(matrix(size), names)).startswith(b"\x89PNG")


def test_confusion_writes_its_counts_up_to_fifteen_classes():
    counts = np.array([[1234, 0], [7, 5]])
    axes = plot_confusion(counts, ["a", "b"]).axes[0]
    written = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert written == {((0, 0), "1,234"), ((0, 1), "7"), ((1, 1), "5")}
    assert len(plot_confusion(matrix(16), [str(number) for number in range(16)]).axes[0].texts) == 0


def test_confusion_colours_mistakes_unlike_right_answers():
    colours = plot_confusion(np.array([[6, 4], [0, 9]]), ["a", "b"]).axes[0].images[0].get_array()
    right, mistake, none = colours[0, 0], colours[0, 1], colours[1, 0]
    assert right[2] > right[0]
    assert mistake[0] > mistake[2]
    assert none.tolist() == [1, 1, 1, 1]


def test_confusion_colours_do_not_depend_on_the_size_of_a_class():
    few = plot_confusion(np.array([[6, 4], [0, 1]]), ["a", "b"]).axes[0].images[0].get_array()
    many = plot_confusion(np.array([[600, 400], [0, 1]]), ["a", "b"]).axes[0].images[0].get_array()
    assert np.array_equal(few, many)


def test_confusion_with_an_empty_row_renders():
    assert figure_bytes(plot_confusion(np.array([[0, 0], [1, 2]]), ["a", "b"])).startswith(b"\x89PNG")


def test_confusion_of_hostile_names_renders():
    assert figure_bytes(plot_confusion(matrix(6), HOSTILE), form="svg").startswith(b"<?xml")


@pytest.mark.parametrize(("shape", "names"), [((2, 3), ["a", "b"]), ((2, 2), ["a"]), ((0, 0), [])])
def test_confusion_of_another_shape_is_refused(shape, names):
    with pytest.raises(OptionError, match=r"plot_confusion: expected a matrix .* Pass one row and one column a class"):
        plot_confusion(np.zeros(shape, dtype=np.int64), names)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (8, 30, 3), (224, 224, 4)])
def test_gallery_takes_grey_colour_and_transparent_images(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    figure = plot_gallery([image], ["a → b\n99 %"])
    assert np.array_equal(np.squeeze(figure.axes[0].images[0].get_array()), np.squeeze(image))
    assert figure_bytes(figure).startswith(b"\x89PNG")


def test_gallery_shows_grey_levels_as_they_are():
    shown = plot_gallery([np.full((4, 4), 100, dtype=np.uint8)], ["dark"]).axes[0].images[0]
    assert shown.get_clim() == (0, 255)


def test_gallery_pairs_images_with_captions():
    images = [np.full((4, 4), value, dtype=np.uint8) for value in range(11)]
    figure = plot_gallery(images, [f"caption {value}" for value in range(11)])
    shown = [(axes.images[0].get_array()[0, 0], axes.texts[0].get_text()) for axes in figure.axes if axes.images]
    assert shown == [(value, f"caption {value}") for value in range(11)]


def test_gallery_of_hostile_captions_renders():
    images = [np.zeros((4, 4), dtype=np.uint8)] * len(HOSTILE)
    assert figure_bytes(plot_gallery(images, HOSTILE)).startswith(b"\x89PNG")


@pytest.mark.parametrize(("count", "captions"), [(0, []), (1, []), (1, ["a", "b"])])
def test_gallery_without_its_captions_is_refused(count, captions):
    with pytest.raises(OptionError, match=r"expected at least one image and one caption each.* Leave the gallery out"):
        plot_gallery([np.zeros((4, 4), dtype=np.uint8)] * count, captions)
