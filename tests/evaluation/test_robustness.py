"""Mean corruption accuracy against sums made by hand, and pairs of runs."""

import math

import numpy as np
import pytest

from convpeft.data.corruptions import ALL, COMMON, EXTRA
from convpeft.errors import OptionError
from convpeft.evaluation.robustness import Robustness

FOG_AND_RAIN = np.array(
    [  # two corruptions, two severities, four images
        [[1, 1, 0, 1], [1, 0, 0, 1]],
        [[0, 1, 0, 0], [0, 1, 0, 0]],
    ],
    dtype=bool,
)


def two(correct=FOG_AND_RAIN, clean=None) -> Robustness:
    return Robustness(("fog", "rain"), (1, 5), correct, clean)


def all_twenty(n: int = 40, seed: int = 0) -> Robustness:
    rng = np.random.default_rng(seed)
    return Robustness(ALL, (1, 2, 3, 4, 5), rng.random((20, 5, n)) < np.linspace(0.2, 0.9, 20)[:, None, None])


def test_accuracies_are_counted_by_hand():
    assert two().accuracies.tolist() == [[0.75, 0.5], [0.25, 0.25]]
    assert two().mean().accuracy == pytest.approx(7 / 16)
    assert two().mean(["fog"]).accuracy == pytest.approx(5 / 8)


def test_mca_15_and_19_and_rain_are_means_of_their_own_corruptions():
    found = all_twenty()
    told = found.to_dict()
    by_name = {name: found.correct[i].sum() / (5 * 40) for i, name in enumerate(ALL)}
    fifteen = math.fsum(by_name[name] for name in COMMON) / 15
    nineteen = math.fsum(by_name[name] for name in (*COMMON, *EXTRA)) / 19
    assert told["mca_15"]["accuracy"] == pytest.approx(fifteen, abs=1e-12)
    assert told["mca_19"]["accuracy"] == pytest.approx(nineteen, abs=1e-12)
    assert told["rain"]["accuracy"] == pytest.approx(by_name["rain"], abs=1e-12)
    assert told["mca_15"]["error"] == pytest.approx(1 - fifteen, abs=1e-12)
    assert told["corruptions"]["fog"]["by_severity"]["3"] == pytest.approx(found.correct[9, 2].mean())


def test_mca_is_not_told_of_a_part_of_its_corruptions():
    told = two().to_dict()
    assert (told["mca_15"], told["mca_19"]) == (None, None)
    assert told["rain"]["accuracy"] == 0.25
    assert told["all"]["accuracy"] == pytest.approx(7 / 16)


def test_clean_accuracy_stands_beside():
    clean = two(clean=np.array([1, 1, 1, 0], dtype=bool)).to_dict()["clean"]
    assert clean["accuracy"] == 0.75
    assert clean["interval"][0] < 0.75 < clean["interval"][1]
    assert two().to_dict()["clean"] is None


def test_interval_is_over_images_and_not_over_their_corrupted_forms():
    """All forms of an image are alike: the interval is that of 100 images, not of 10,000."""
    right = np.broadcast_to(np.arange(100) < 50, (20, 5, 100))
    low, high = Robustness(ALL, (1, 2, 3, 4, 5), right).mean().interval
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), rel=0.1)


def test_pair_is_compared_image_by_image():
    better = FOG_AND_RAIN.copy()
    better[1] = True
    paired = two(better).minus(two())
    assert paired.delta == pytest.approx(6 / 16)
    assert paired.interval[0] > 0
    assert two().minus(two(better)).delta == pytest.approx(-6 / 16)
    told = paired.describe("a", "b", "mCA-15")
    assert told.startswith("a is 37.50 points more accurate than b (mCA-15; 95 % interval ")
    assert "paired over 4 images" in told


def test_pair_within_noise_says_so():
    told = two().minus(two()).describe("a", "b", "rain")
    assert told == "a and b differ by 0.00 points (rain; 95 % interval 0.00 to 0.00): within the noise of 4 images."


def test_what_differs_cannot_be_paired():
    with pytest.raises(
        OptionError, match=r"expected two of the same corruptions, severities and images, got 2 x 2 x 4"
    ):
        two().minus(all_twenty())


def test_what_was_not_measured_has_no_mean():
    with pytest.raises(OptionError, match=r"Robustness: snow was not measured\. Measure it first"):
        two().mean(["fog", "snow"])


def test_wrong_shape_is_refused():
    with pytest.raises(OptionError, match=r"expected right and wrong of shape \(2, 2, 'images'\), got \(2, 4\)"):
        two(FOG_AND_RAIN[:, 0])
