import math

import numpy as np
import pytest

from convpeft.errors import OptionError
from convpeft.evaluation.calibration import calibration_bins
from convpeft.reporting import figure_bytes, plot_curves, plot_reliability

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "val_loss": 2.1, "val_accuracy": 0.4, "lr": 1e-3},
    {"epoch": 2, "train_loss": 1.0, "val_loss": 1.4, "val_accuracy": 0.7, "lr": 5e-4},
    {"epoch": 3, "train_loss": 0.5, "val_loss": 1.5, "val_accuracy": 0.7, "lr": 0.0},
]


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def test_curves_draw_every_column():
    loss, accuracy, rate = plot_curves(HISTORY).axes
    assert list(lines(loss)["training"]) == [2.0, 1.0, 0.5]
    assert list(lines(loss)["validation"]) == [2.1, 1.4, 1.5]
    assert list(lines(accuracy)["validation"]) == [40.0, 70.0, 70.0]
    assert list(lines(rate)["learning rate"]) == [1e-3, 5e-4, 0.0]


def test_curves_mark_the_first_of_the_best_epochs():
    accuracy = plot_curves(HISTORY).axes[1]
    (label,) = accuracy.texts
    assert label.get_text() == "best 70.00 %"
    assert label.xy == (2, 70.0)


@pytest.mark.parametrize("value", [None, math.nan])
def test_curves_leave_gaps(value):
    history = [HISTORY[0], {**HISTORY[1], "val_loss": value, "val_accuracy": value}]
    figure = plot_curves(history)
    assert math.isnan(lines(figure.axes[0])["validation"][1])
    assert figure.axes[1].texts[0].get_text() == "best 40.00 %"


@pytest.mark.parametrize(
    "history", [HISTORY[:1], [{"epoch": 1, "train_loss": 1.0}], [{"epoch": 1}, {"epoch": 2}], HISTORY * 20]
)
def test_curves_of_any_length_render(history):
    assert figure_bytes(plot_curves(history)).startswith(b"\x89PNG")


def test_curves_of_nothing_are_refused():
    with pytest.raises(OptionError, match=r"expected at least one epoch, got none\. Plot after the first epoch"):
        plot_curves([])


def test_reliability_draws_a_bar_a_filled_bin():
    bins = calibration_bins(np.array([0.05, 0.5, 0.5, 0.95]), np.array([False, True, False, True]))
    upper, lower = plot_reliability(bins).axes
    assert [bar.get_height() for bar in upper.patches] == [0.0, 0.5, 1.0]
    assert [bar.get_height() for bar in lower.patches] == [1, 2, 1]


def test_reliability_pales_bins_of_few_images():
    confidence = np.array([0.5] * 9 + [0.9] * 10)
    upper, _ = plot_reliability(calibration_bins(confidence, confidence > 0.1)).axes
    few, many = (bar.get_alpha() for bar in upper.patches)
    assert few < many


def test_reliability_renders():
    bins = calibration_bins(np.array([1.0]), np.array([True]))
    assert figure_bytes(plot_reliability(bins)).startswith(b"\x89PNG")
