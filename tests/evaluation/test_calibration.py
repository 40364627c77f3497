import numpy as np
import pytest

from convpeft.evaluation import classification_metrics
from convpeft.evaluation.calibration import calibration_bins, expected_calibration_error

# Sums of a few hundred float64 terms.
TOLERANCE = 1e-12


def reference_error(confidence, correct, bins=15):
    """The definition of Guo et al., one image and one bin at a time."""
    total = 0.0
    for number in range(bins):
        inside = [i for i, c in enumerate(confidence) if number / bins < c <= (number + 1) / bins]
        if inside:
            gap = sum(correct[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


def test_expected_calibration_error_equals_its_definition():
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(0.1, 1, 500), rng.random(500) < 0.7
    measured = expected_calibration_error(calibration_bins(confidence, correct))
    assert measured == pytest.approx(reference_error(confidence, correct), abs=TOLERANCE)


def test_bins_include_their_upper_edge():
    edges = np.linspace(0, 1, 16)[1:]
    bins = calibration_bins(edges, np.ones(15, dtype=bool))
    assert [each.count for each in bins] == [1] * 15


def test_confidence_one_falls_into_the_last_bin():
    assert calibration_bins(np.array([1.0, np.nextafter(1, 2)]), np.array([True, False]))[-1].accuracy == 0.5


def test_empty_bin_has_no_means():
    first = calibration_bins(np.array([1.0]), np.array([True]))[0]
    assert (first.count, first.confidence, first.accuracy) == (0, None, None)


def test_metrics_use_the_probability_of_the_predicted_class():
    metrics = classification_metrics([[0.3, 0.7], [0.6, 0.4]], [1, 1], ["a", "b"])
    assert metrics.expected_calibration_error == pytest.approx((0.3 + 0.6) / 2, abs=TOLERANCE)
    assert len(metrics.calibration) == 15
