import numpy as np
import pytest
import scipy.stats

from convpeft.errors import OptionError
from convpeft.evaluation import Difference, describe_difference, mcnemar, paired_difference

# The exact tail here, a beta function there.
TOLERANCE = 1e-12


def answers(only_a, only_b, both, neither):
    """Build right and wrong answers of two classifiers with these counts."""
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (1, 1), (3, 12), (40, 31), (700, 1_300)])
def test_mcnemar_equals_scipy_binomial_test(only_a, only_b):
    expected = scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
    assert mcnemar(*answers(only_a, only_b, 5, 2)) == pytest.approx(expected, abs=TOLERANCE)


def test_mcnemar_of_equal_answers_is_one():
    assert mcnemar(*answers(0, 0, 7, 3)) == 1.0


def test_difference_is_the_difference_of_accuracies():
    a, b = answers(12, 3, 80, 5)
    difference = paired_difference(a, b, seed=0)
    assert difference.delta == pytest.approx(a.mean() - b.mean(), abs=TOLERANCE)
    assert (difference.only_a, difference.only_b, difference.n) == (12, 3, 100)
    assert difference.p_value == mcnemar(a, b)


def test_interval_agrees_with_scipy_bootstrap_of_paired_values():
    a, b = answers(60, 30, 300, 110)
    values = a.astype(float) - b.astype(float)
    oracle = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4_000, rng=np.random.default_rng(0)
    ).confidence_interval
    difference = paired_difference(a, b, seed=0)
    # The standard error is 0.019; the ends of 4,000 resamples scatter by a few percent of it.
    assert (difference.low, difference.high) == pytest.approx(tuple(oracle), abs=0.004)


def test_interval_turns_round_with_the_pair():
    a, b = answers(60, 30, 300, 110)
    there, back = paired_difference(a, b, seed=0), paired_difference(b, a, seed=0)
    assert there.delta == -back.delta
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.004)


def test_difference_is_the_same_for_the_same_seed():
    a, b = answers(60, 30, 300, 110)
    assert paired_difference(a, b, seed=5) == paired_difference(a, b, seed=5)


def test_a_clear_difference_is_not_noise():
    assert not paired_difference(*answers(60, 20, 300, 20), seed=0).within_noise


def test_an_interval_that_holds_zero_is_noise():
    assert Difference(0.01, -0.01, 0.03, 0.01, n=9, only_a=2, only_b=1, confidence=0.95).within_noise


def test_a_p_value_above_five_percent_is_noise():
    assert Difference(0.01, 0.001, 0.03, 0.06, n=9, only_a=2, only_b=1, confidence=0.95).within_noise


@pytest.mark.parametrize("function", [mcnemar, lambda a, b: paired_difference(a, b, seed=0)])
@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], []), ([[True]], [[True]])])
def test_unpaired_answers_are_refused(function, a, b):
    with pytest.raises(
        OptionError, match=r"non-empty lists of right and wrong, got shapes .* Evaluate both on the same images"
    ):
        function(a, b)


def test_zero_resamples_are_refused():
    with pytest.raises(OptionError, match=r"expected resamples >= 1, got 0. The usual number is 10,000"):
        paired_difference([True], [False], seed=0, resamples=0)


def test_difference_refuses_percent():
    with pytest.raises(OptionError, match=r"paired_difference: expected confidence in \(0, 1\), got 95"):
        paired_difference([True], [False], seed=0, confidence=95)


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            Difference(0.02, 0.012, 0.028, 0.00001, n=2000, only_a=60, only_b=20, confidence=0.95),
            "LoRA is 2.00 points more accurate than probe (95 % interval 1.20 to 2.80, p < 0.001, "
            "paired over 2,000 images).",
        ),
        (
            Difference(-0.02, -0.028, -0.012, 0.0042, n=2000, only_a=20, only_b=60, confidence=0.9),
            "LoRA is 2.00 points less accurate than probe (90 % interval -2.80 to -1.20, p = 0.0042, "
            "paired over 2,000 images).",
        ),
        (
            Difference(0.0, 0.0, 0.0, 1.0, n=50, only_a=0, only_b=0, confidence=0.95),
            "LoRA and probe are right on exactly the same of 50 images.",
        ),
        (
            Difference(-0.01, -0.03, 0.01, 0.4, n=200, only_a=5, only_b=7, confidence=0.95),
            "LoRA and probe differ by 1.00 points (95 % interval -3.00 to 1.00, p = 0.4): within the noise "
            "of 200 images.",
        ),
    ],
)
def test_a_difference_is_described_in_a_plain_sentence(difference, sentence):
    assert describe_difference(difference, a="LoRA", b="probe") == sentence
