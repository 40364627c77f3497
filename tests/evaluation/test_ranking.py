import numpy as np
import pytest

from convpeft.evaluation.ranking import area_under_curve, top_k_accuracy


@pytest.mark.promise("C13")
def test_area_counts_pairs_and_half_of_ties():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    pairs = [(p > q) + (p == q) / 2 for p in scores[positive] for q in scores[~positive]]
    assert area_under_curve(scores, positive) == sum(pairs) / len(pairs)


@pytest.mark.promise("C13")
def test_area_of_equal_scores_is_one_half():
    assert area_under_curve(np.zeros(5), np.array([True, False, True, False, False])) == 0.5


@pytest.mark.promise("C13")
@pytest.mark.parametrize("value", [True, False])
def test_area_of_one_group_is_undefined(value):
    assert area_under_curve(np.arange(3.0), np.full(3, value)) is None


@pytest.mark.promise("C13")
def test_top_k_of_a_dead_network_is_not_below_accuracy():
    assert top_k_accuracy(np.full((4, 8), 1 / 8), np.zeros(4, dtype=np.int64), 5) == 1.0


@pytest.mark.promise("C13")
def test_top_k_of_every_class_is_one():
    rng = np.random.default_rng(0)
    assert top_k_accuracy(rng.random((20, 4)), rng.integers(0, 4, 20), 4) == 1.0
