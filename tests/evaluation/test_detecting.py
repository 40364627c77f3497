"""What a comparison could have found, against scipy's non-central t and against simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from convpeft.errors import OptionError
from convpeft.evaluation import (
    describe_seed_difference,
    detectable_over_pairs,
    detectable_over_seeds,
    mean_interval,
    seed_difference,
)


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.2, 0.25, 0.9], list(np.linspace(0, 1, 11))])
def test_mean_interval_equals_scipy(values):
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(("n", "power"), [(4, 0.8), (3, 0.8), (5, 0.9), (20, 0.8)])
def test_difference_over_seeds_is_found_as_often_as_said(n, power):
    found = detectable_over_seeds(n, deviation=0.7, power=power)
    shift, limit = found * math.sqrt(n) / 0.7, scipy.stats.t.ppf(0.975, n - 1)
    reached = scipy.stats.nct.sf(limit, n - 1, shift) + scipy.stats.nct.cdf(-limit, n - 1, shift)
    assert reached == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize(("n", "discordance"), [(1000, 0.1), (400, 0.3)])
def test_difference_over_pairs_is_found_as_often_as_said(n, discordance):
    found = detectable_over_pairs(n, discordance=discordance)
    better, worse = (discordance + found) / 2, (discordance - found) / 2
    counts = np.random.default_rng(0).multinomial(n, [better, worse, 1 - discordance], size=20_000)
    statistic = np.abs(counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    # 20,000 draws scatter by 0.003; the normal approximation is off by about as much
    assert (statistic > 1.959964).mean() == pytest.approx(0.8, abs=0.02)


def test_too_few_pairs_find_nothing():
    assert detectable_over_pairs(2, discordance=0.1) == 1.0
    assert detectable_over_pairs(1, discordance=0.0) == 1.0


def test_seeds_are_paired():
    found = seed_difference([0.50, 0.70, 0.90], [0.48, 0.69, 0.87])
    expected = scipy.stats.ttest_rel([0.50, 0.70, 0.90], [0.48, 0.69, 0.87]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert found.within_noise == (expected.low <= 0 <= expected.high)


def test_sentence_says_when_seeds_cannot_tell():
    noise = seed_difference([0.5, 0.6], [0.6, 0.5])
    assert "within the noise of 2 seeds" in describe_seed_difference(noise, a="a", b="b")
    clear = seed_difference([0.5, 0.61, 0.7], [0.4, 0.5, 0.6])
    assert describe_seed_difference(clear, a="a", b="b").startswith("a is 10.33 points more accurate than b (95 %")
    one = seed_difference([0.5], [0.4])
    assert "with one seed, which says nothing of other seeds" in describe_seed_difference(one, a="a", b="b")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seed_difference([0.1], []), "one accuracy a seed of either method"),
        (lambda: mean_interval([0.1]), "expected two values or more, got one"),
        (lambda: detectable_over_pairs(0, discordance=0.1), "expected n >= 1, discordance in 0..1"),
        (lambda: detectable_over_seeds(1, deviation=0.1), "expected n >= 2, deviation >= 0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(OptionError, match=message):
        call()
