import numpy as np
import pytest

from convpeft.errors import OptionError
from convpeft.evaluation import Predictions, errors_most_confident
from convpeft.evaluation.confusion import confusion_matrix, find_confused_pairs

MATRIX = np.array([[5, 1, 0], [3, 7, 2], [0, 2, 9]])


@pytest.mark.promise("C13")
def test_rows_are_true_classes():
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 1, 2]), num_classes=3)
    assert matrix.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_pairs_count_both_directions_and_their_share():
    first, second = find_confused_pairs(MATRIX, ("a", "b", "c"))
    assert (first.first, first.second, first.first_as_second, first.second_as_first) == ("a", "b", 1, 3)
    assert (first.count, first.share) == (4, 0.5)
    assert (second.first, second.second) == ("b", "c")


def test_pairs_are_sorted_by_mutual_confusions():
    matrix = np.array([[0, 1, 5], [0, 0, 0], [0, 9, 0]])
    counts = [pair.count for pair in find_confused_pairs(matrix, ("a", "b", "c"))]
    assert counts == [9, 5, 1]


def test_a_perfect_matrix_has_no_pairs():
    assert find_confused_pairs(np.diag([3, 4]), ("a", "b")) == ()


def predictions():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    return Predictions(
        logits=np.log(probabilities).astype(np.float32),
        labels=np.array([1, 1, 1, 0, 0]),
        index=np.array([40, 30, 20, 10, 0]),
    )


def test_mistakes_come_surest_first_and_equals_by_position():
    mistakes = errors_most_confident(predictions(), 10)
    assert [(each.index, each.label, each.predicted) for each in mistakes] == [
        (20, 1, 0),
        (40, 1, 0),
        (10, 0, 1),
    ]
    assert mistakes[0].confidence == pytest.approx(0.9, abs=1e-6)


def test_mistakes_are_at_most_n():
    assert len(errors_most_confident(predictions(), 2)) == 2


def test_mistakes_of_a_perfect_model_are_none():
    perfect = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), np.array([0, 1]))
    assert errors_most_confident(perfect, 5) == ()


def test_a_negative_number_of_mistakes_is_refused():
    with pytest.raises(OptionError, match=r"expected n >= 0, got -1. Pass how many"):
        errors_most_confident(predictions(), -1)
