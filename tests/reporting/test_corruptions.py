"""Figures and words on corrupted images."""

import numpy as np
import pytest

from convpeft.errors import OptionError
from convpeft.evaluation.robustness import Robustness
from convpeft.reporting import Table, figure_bytes
from convpeft.reporting.corruptions import plot_contact_sheet, plot_robustness
from convpeft.reporting.robustness import Origin, remarks, robustness_sections

FOUND = Robustness(("fog", "rain"), (1, 5), np.arange(16).reshape(2, 2, 4) < 9, np.ones(4, dtype=bool))


def test_table_of_accuracies_is_drawn_with_every_number():
    texts = [text.get_text() for text in plot_robustness(FOUND).axes[0].texts]
    assert texts == ["100.0", "100.0", "100.0", "100.0", "100.0", "100.0", "25.0", "0.0", "12.5"]


def test_contact_sheet_shows_a_row_a_corruption():
    rows = {"fog": [np.zeros((8, 8, 1), np.uint8)] * 2, "jpeg_compression": [np.zeros((8, 8, 3), np.uint8)] * 2}
    figure = plot_contact_sheet(rows, ["1", "2"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["fog", "jpeg compression"]
    assert figure_bytes(figure).startswith(b"\x89PNG")


def test_contact_sheet_wants_a_picture_for_each_column():
    with pytest.raises(OptionError, match="plot_contact_sheet: expected 2 pictures a row and one row or more, got"):
        plot_contact_sheet({"fog": [np.zeros((8, 8, 3), np.uint8)]}, ["1", "2"])


def test_regenerated_images_are_called_so_in_every_title():
    sections = robustness_sections(FOUND, Origin(True, "regenerated"))
    titles = [section.title for section in sections if getattr(section, "image", None) or isinstance(section, Table)]
    assert titles == ["Accuracy under corruption (regenerated)", "Corruption by corruption (regenerated)"]


def test_training_corruptions_stand_apart_from_those_of_the_test():
    told = remarks(FOUND, Origin(True, "regenerated", trained_on=("fog", "snow")))
    assert told[:3] == (
        "Training corruptions: fog, snow.",
        "Test corruptions: fog, rain.",
        "In both: fog. What the model was trained on says little about what it has not seen.",
    )
    assert told[3] == "Mean accuracy over the 1 that it was not trained on: 12.5 %."
