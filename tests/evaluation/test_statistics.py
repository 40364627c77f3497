import math
import statistics

import numpy as np
import pytest
import scipy.stats

from convpeft.errors import OptionError
from convpeft.evaluation import (
    bootstrap_interval,
    mean_and_deviation,
    minimum_detectable_effect,
    wilson_interval,
)

# The two sides use different implementations of the normal quantile.
TOLERANCE = 1e-12


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 30), (9_731, 10_000)])
def test_wilson_interval_equals_scipy(successes, n, confidence):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence=confidence) == pytest.approx(tuple(expected), abs=TOLERANCE)


def test_wilson_interval_is_exact_at_the_ends():
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(OptionError, match=f"got successes={successes}, n={n}. Pass the number of right answers"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95, float("nan")])
def test_wilson_interval_refuses_percent(confidence):
    with pytest.raises(
        OptionError, match=r"wilson_interval: expected confidence in \(0, 1\), got .* usual value is 0.95"
    ):
        wilson_interval(1, 2, confidence=confidence)


def test_bootstrap_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=80)
    oracle = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4_000, rng=np.random.default_rng(1)
    ).confidence_interval
    # Ends of 4,000 resamples scatter by about 3 % of the standard error, 0.22.
    assert bootstrap_interval(values, seed=0, resamples=4_000) == pytest.approx(tuple(oracle), abs=0.04)


def test_bootstrap_interval_takes_any_statistic():
    values = np.arange(101.0)
    low, high = bootstrap_interval(values, lambda sample: float(np.median(sample)), seed=0, resamples=500)
    assert 20 < low < 50 < high < 80


def test_bootstrap_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(0).random(50)
    first, again = (bootstrap_interval(values, seed=3, resamples=200) for _ in range(2))
    assert first == again != bootstrap_interval(values, seed=4, resamples=200)


@pytest.mark.parametrize(("values", "resamples"), [([], 10), ([[1.0]], 10), ([1.0], 0)])
def test_bootstrap_interval_refuses_nothing_to_draw(values, resamples):
    with pytest.raises(OptionError, match="Pass a flat, non-empty sequence of numbers"):
        bootstrap_interval(values, seed=0, resamples=resamples)


def test_mean_and_deviation_equal_the_standard_library():
    values = [0.91, 0.93, 0.915, 0.94, 0.9]
    expected = (statistics.fmean(values), statistics.stdev(values))
    assert mean_and_deviation(values) == pytest.approx(expected, abs=TOLERANCE)


def test_one_run_has_no_deviation():
    assert mean_and_deviation([0.9]) == (0.9, None)


def test_no_runs_are_refused():
    with pytest.raises(OptionError, match=r"expected at least one value, got none. Pass one number a run"):
        mean_and_deviation([])


@pytest.mark.parametrize(
    ("n", "accuracy", "power"), [(500, 0.9, 0.8), (10_000, 0.97, 0.9), (2_000, 0.2, 0.8), (100, 1.0, 0.8)]
)
def test_minimum_detectable_effect_has_the_power_asked_for(n, accuracy, power):
    delta = minimum_detectable_effect(n, accuracy, power=power)
    other = accuracy - delta if accuracy >= 0.5 else accuracy + delta
    pooled = (accuracy + other) / 2
    critical = scipy.stats.norm.ppf(0.975) * math.sqrt(2 * pooled * (1 - pooled) / n)
    spread = math.sqrt((accuracy * (1 - accuracy) + other * (1 - other)) / n)
    assert scipy.stats.norm.sf((critical - delta) / spread) == pytest.approx(power, abs=1e-9)


def test_minimum_detectable_effect_matches_a_known_sample_size():
    # The textbook case: telling 0.90 from 0.80 at level 0.05 and power 0.80 takes 199 a group.
    assert minimum_detectable_effect(199, 0.9) == pytest.approx(0.1, abs=5e-4)


def test_too_few_images_detect_nothing():
    assert minimum_detectable_effect(1, 0.9) == 1.0


@pytest.mark.parametrize(("n", "accuracy", "power"), [(0, 0.9, 0.8), (10, 90, 0.8), (10, 0.9, 80)])
def test_minimum_detectable_effect_refuses_percent(n, accuracy, power):
    with pytest.raises(OptionError, match="Accuracy and power are fractions, not percent"):
        minimum_detectable_effect(n, accuracy, power=power)
