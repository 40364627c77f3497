"""ACC, BWT, FWT and forgetting of a sequence of tasks, against plain loops and numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from convpeft.errors import OptionError
from convpeft.evaluation import sequence_scores

MATRIX = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.6, 1.0]]


def test_scores_are_those_worked_out_by_hand():
    found = sequence_scores(MATRIX, untrained=[0.1, 0.1, 0.1])
    assert found.accuracy == pytest.approx(0.7)
    assert found.backward == pytest.approx((-0.4 - 0.2) / 2)
    assert found.forward == pytest.approx((0.1 + 0.2) / 2)
    assert found.forgetting == pytest.approx((0.4, 0.2))


@given(arrays(float, st.integers(2, 6).map(lambda n: (n + 1, n)), elements=st.floats(0, 1)))
def test_scores_equal_the_sums_of_the_definitions(values):
    matrix, untrained = values[:-1], values[-1]
    tasks, found = len(matrix), sequence_scores(matrix, untrained=untrained)
    last = tasks - 1
    assert found.accuracy == pytest.approx(sum(matrix[last][k] for k in range(tasks)) / tasks, abs=1e-12)
    backward = sum(matrix[last][k] - matrix[k][k] for k in range(last)) / last
    forward = sum(matrix[k - 1][k] - untrained[k] for k in range(1, tasks)) / last
    assert (found.backward, found.forward) == pytest.approx((backward, forward), abs=1e-12)
    assert sum(found.forgetting) / last == pytest.approx(-backward, abs=1e-12)


def test_single_task_has_no_transfer():
    found = sequence_scores([[0.5]], untrained=[0.1])
    assert (found.accuracy, found.backward, found.forward, found.forgetting) == (0.5, None, None, ())


def test_entries_that_no_score_needs_may_be_missing():
    matrix = np.array(MATRIX)
    matrix[0, 2] = matrix[1, 0] = math.nan
    assert sequence_scores(matrix) == sequence_scores(MATRIX)


@pytest.mark.parametrize("matrix", [[[0.5, 0.5]], [0.5], np.empty((0, 0))])
def test_matrix_that_is_not_square_is_refused(matrix):
    with pytest.raises(OptionError, match=r"expected a matrix \(tasks, tasks\), got shape .* Measure every task"):
        sequence_scores(matrix)


def test_other_number_of_untrained_accuracies_is_refused():
    with pytest.raises(OptionError, match="expected one untrained accuracy for each of 3 tasks, got shape"):
        sequence_scores(MATRIX, untrained=[0.1])


@pytest.mark.parametrize("value", [97.0, -0.1, math.nan])
def test_what_is_no_fraction_is_refused(value):
    matrix = np.array(MATRIX)
    matrix[2, 1] = value
    with pytest.raises(OptionError, match=r"expected accuracies in 0\.\.1\. Pass fractions, not percent, and no NaN"):
        sequence_scores(matrix)
