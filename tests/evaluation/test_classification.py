import json
import math

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given
from hypothesis import strategies as st

from convpeft.errors import DataError
from convpeft.evaluation import classification_metrics

# Both sides accumulate in float64; C13 promises this much.
TOLERANCE = 1e-12


def example(seed, *, n=200, k=7, absent=(), ties=False):
    """Make probabilities (n, k) and labels (n,); ties: rounded logits; absent: classes without an image."""
    rng = np.random.default_rng(seed)
    present = [number for number in range(k) if number not in absent]
    labels = rng.choice(present, size=n)
    logits = rng.normal(size=(n, k)) * 1.5
    logits[np.arange(n), labels] += 1.0
    if ties:
        logits = np.round(logits * 2) / 2
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def measured(probabilities, labels):
    names = [f"class {number}" for number in range(probabilities.shape[1])]
    return classification_metrics(probabilities, labels, names)


CASES = {
    "plain": {"seed": 0},
    "ties": {"seed": 1, "ties": True},
    "absent classes": {"seed": 2, "absent": (0, 4, 6)},
    "absent and ties": {"seed": 3, "absent": (2,), "ties": True},
    "two classes": {"seed": 4, "k": 2},
    "two classes with ties": {"seed": 5, "k": 2, "ties": True},
    "two classes, one absent": {"seed": 6, "k": 2, "absent": (0,)},
    "three images": {"seed": 7, "n": 3},
    "sixty-two classes": {"seed": 8, "k": 62, "n": 400, "ties": True},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    probabilities, labels = example(**request.param)
    return probabilities, labels, probabilities.argmax(1), np.unique(labels), measured(probabilities, labels)


def close(expected):
    return pytest.approx(expected, rel=0, abs=TOLERANCE)


@pytest.mark.promise("C13")
def test_accuracy_equals_sklearn(case):
    _, labels, predicted, _, metrics = case
    assert metrics.accuracy == close(oracle.accuracy_score(labels, predicted))


@pytest.mark.promise("C13")
def test_balanced_accuracy_equals_sklearn_on_present_classes(case):
    _, labels, predicted, present, metrics = case
    expected = oracle.recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.balanced_accuracy == close(expected)


@pytest.mark.promise("C13")
def test_macro_f1_equals_sklearn_on_present_classes(case):
    _, labels, predicted, present, metrics = case
    expected = oracle.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.macro_f1 == close(expected)


@pytest.mark.promise("C13")
def test_macro_precision_equals_sklearn_on_present_classes(case):
    _, labels, predicted, present, metrics = case
    expected = oracle.precision_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.macro_precision == close(expected)


@pytest.mark.promise("C13")
def test_class_scores_equal_sklearn(case):
    _, labels, predicted, present, metrics = case
    precision, recall, f1, support = oracle.precision_recall_fscore_support(
        labels, predicted, labels=present, zero_division=0
    )
    rows = [metrics.per_class[number] for number in present]
    assert [row.support for row in rows] == support.tolist()
    for name, expected in (("precision", precision), ("sensitivity", recall), ("f1", f1)):
        assert [getattr(row, name) for row in rows] == close(expected.tolist())


@pytest.mark.promise("C13")
def test_specificity_is_the_recall_of_the_rest(case):
    _, labels, predicted, present, metrics = case
    for number in present:
        expected = None
        if len(present) > 1:
            expected = close(oracle.recall_score(labels != number, predicted != number))
        assert metrics.per_class[number].specificity == expected


@pytest.mark.promise("C13")
def test_class_auc_equals_sklearn_one_against_the_rest(case):
    probabilities, labels, _, present, metrics = case
    for number in present:
        expected = None
        if len(present) > 1:
            expected = close(oracle.roc_auc_score(labels == number, probabilities[:, number]))
        assert metrics.per_class[number].auc == expected


@pytest.mark.promise("C13")
def test_macro_auc_equals_sklearn_ovr_when_every_class_is_present():
    probabilities, labels = example(10, ties=True)
    expected = oracle.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert measured(probabilities, labels).macro_auc == close(expected)


@pytest.mark.promise("C13")
def test_binary_auc_equals_sklearn_on_the_second_class():
    probabilities, labels = example(11, k=2, ties=True)
    expected = oracle.roc_auc_score(labels, probabilities[:, 1])
    assert measured(probabilities, labels).macro_auc == close(expected)


@pytest.mark.promise("C13")
def test_confusion_equals_sklearn(case):
    probabilities, labels, predicted, _, metrics = case
    expected = oracle.confusion_matrix(labels, predicted, labels=range(probabilities.shape[1]))
    assert np.array_equal(metrics.confusion, expected)


@pytest.mark.promise("C13")
def test_negative_log_likelihood_equals_sklearn(case):
    probabilities, labels, _, _, metrics = case
    expected = oracle.log_loss(labels, y_proba=probabilities, labels=range(probabilities.shape[1]))
    assert metrics.negative_log_likelihood == close(expected)


@pytest.mark.promise("C13")
def test_negative_log_likelihood_of_a_zero_probability_equals_sklearn():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    labels = np.array([1, 0])
    expected = oracle.log_loss(labels, y_proba=probabilities, labels=[0, 1])
    assert measured(probabilities, labels).negative_log_likelihood == close(expected)


@pytest.mark.promise("C13")
def test_top5_equals_sklearn_without_ties():
    probabilities, labels = example(12, k=12)
    expected = oracle.top_k_accuracy_score(labels, probabilities, k=5, labels=range(12))
    assert measured(probabilities, labels).top5_accuracy == close(expected)


@pytest.mark.promise("C13")
def test_top5_takes_the_first_of_equals_as_the_prediction_does():
    # scikit-learn takes the last of equals: reversing the classes makes its rule ours.
    probabilities, labels = example(13, k=12, ties=True)
    expected = oracle.top_k_accuracy_score(11 - labels, probabilities[:, ::-1], k=5, labels=range(12))
    assert measured(probabilities, labels).top5_accuracy == close(expected)


@pytest.mark.promise("C13")
def test_top5_is_undefined_for_five_classes():
    assert measured(*example(14, k=5)).top5_accuracy is None


@pytest.mark.promise("C13")
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    k=st.integers(1, 8),
    ties=st.booleans(),
    data=st.data(),
)
def test_any_example_equals_sklearn(seed, n, k, ties, data):
    absent = data.draw(st.sets(st.integers(0, k - 1), max_size=k - 1))
    probabilities, labels = example(seed, n=n, k=k, absent=absent, ties=ties)
    predicted, present = probabilities.argmax(1), np.unique(labels)
    metrics = measured(probabilities, labels)
    assert metrics.accuracy == close(oracle.accuracy_score(labels, predicted))
    f1 = oracle.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.macro_f1 == close(f1)
    if len(present) > 1:
        counted = present if k > 2 else [1]  # of two classes, roundings may make ties of the one only
        areas = [oracle.roc_auc_score(labels == number, probabilities[:, number]) for number in counted]
        assert metrics.macro_auc == close(np.mean(areas))


@pytest.mark.promise("C13")
def test_absent_class_has_no_score():
    metrics = measured(*example(2, absent=(4,)))
    scores = metrics.per_class[4]
    assert scores.support == 0
    undefined = (scores.precision, scores.sensitivity, scores.specificity, scores.f1, scores.auc)
    assert undefined == (None,) * 5
    assert metrics.absent_classes == ("class 4",)


@pytest.mark.promise("C13")
def test_single_class_is_measured_without_auc():
    metrics = classification_metrics(np.ones((3, 1)), np.zeros(3, dtype=np.int64), ["only"])
    assert (metrics.accuracy, metrics.macro_f1, metrics.macro_auc, metrics.macro_specificity) == (
        1,
        1,
        None,
        None,
    )
    assert metrics.confused_pairs == ()


@pytest.mark.promise("C13")
def test_errors_counts_wrong_answers():
    probabilities, labels = example(15)
    assert measured(probabilities, labels).errors == np.sum(probabilities.argmax(1) != labels)


@pytest.mark.promise("C13")
@pytest.mark.parametrize("absent", [(), (0, 1, 2, 3, 4, 5)])
def test_to_dict_survives_strict_json(absent):
    metrics = measured(*example(16, absent=absent))
    record = metrics.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["confusion"] == metrics.confusion.tolist()
    assert record["per_class"][6]["sensitivity"] == metrics.per_class[6].sensitivity


@pytest.mark.promise("C13")
def test_float32_probabilities_are_accumulated_in_float64():
    probabilities, labels = example(17)
    rounded = probabilities.astype(np.float32)
    metrics = measured(rounded, labels)
    expected = -math.fsum(math.log(float(rounded[row, label])) for row, label in enumerate(labels))
    assert metrics.negative_log_likelihood == close(expected / len(labels))


GOOD = np.array([[0.25, 0.75], [0.5, 0.5]])


@pytest.mark.promise("C13")
@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int), r"got \(0, 2\) and \(0,\)\. Pass one row an image"),
        (GOOD, np.array([0]), r"with N >= 1, got \(2, 2\) and \(1,\)"),
        (np.full((2, 3), 1 / 3), np.array([0, 1]), r"expected probabilities \(N, 2\)"),
        (GOOD, np.array([0, 2]), r"expected whole-number labels in 0\.\.1, got int64 in 0\.\.2\. Number the"),
        (GOOD, np.array([-1, 0]), r"in -1\.\.0"),
        (GOOD, np.array([0.0, 1.0]), r"got float64"),
        (GOOD * 3, np.array([0, 1]), r"expected rows of probabilities .* not logits"),
        (GOOD * [[1], [np.nan]], np.array([0, 1]), r"expected rows of probabilities"),
        (np.array([[1.5, -0.5]]), np.array([0]), r"expected rows of probabilities"),
    ],
)
def test_unusable_input_is_refused_in_one_line(probabilities, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        classification_metrics(probabilities, labels, ["a", "b"])
    assert "\n" not in str(caught.value)
