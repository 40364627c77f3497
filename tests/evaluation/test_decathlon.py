import pytest

from convpeft.errors import OptionError
from convpeft.evaluation import decathlon_score

# Accuracies in percent and published score, S.-A. Rebuffi et al. 2017, table 1: every row that gives all ten domains.
FINETUNE = (59.87, 60.34, 82.12, 92.82, 55.53, 97.53, 81.41, 87.69, 96.55, 51.20)
ROWS = {
    "scratch+": ((59.67, 59.59, 76.08, 92.45, 39.63, 96.90, 56.66, 88.74, 96.78, 44.17), 1826),
    "feature extractor": ((59.67, 23.31, 63.11, 80.33, 45.37, 68.16, 73.69, 58.79, 43.54, 26.80), 544),
    "finetune": (FINETUNE, 2500),
    "LwF": ((59.87, 61.15, 82.23, 92.34, 58.83, 97.57, 83.05, 88.08, 96.10, 50.04), 2515),
    "BN adapt": ((59.87, 43.05, 78.62, 92.07, 51.60, 95.82, 74.14, 84.83, 94.10, 43.51), 1363),
    "residual adapters": ((59.67, 56.68, 81.20, 93.88, 50.85, 97.05, 66.24, 89.62, 96.13, 47.45), 2118),
    "with decay": ((59.67, 61.87, 81.20, 93.88, 57.13, 97.57, 81.67, 89.62, 96.13, 50.12), 2621),
    "finetune all": ((59.23, 63.73, 81.31, 93.30, 57.02, 97.47, 83.43, 89.82, 96.17, 50.28), 2643),
    "domain prediction": ((59.18, 63.52, 81.12, 93.29, 54.93, 97.20, 82.29, 89.82, 95.99, 50.10), 2503),
    "large": ((67.00, 67.69, 84.69, 94.28, 59.41, 97.43, 84.86, 89.92, 96.59, 52.39), 3131),
}
ROUNDING = 3  # points; the accuracies are published with two decimals


@pytest.mark.parametrize("name", ROWS)
def test_score_reproduces_the_published_table(name):
    accuracies, published = ROWS[name]
    assert decathlon_score(accuracies, baseline=FINETUNE) == pytest.approx(published, abs=ROUNDING)


def test_twice_the_error_of_the_baseline_gives_nothing():
    assert decathlon_score([0.0, 80.0], baseline=[90.0, 90.0]) == 0


@pytest.mark.parametrize(
    ("accuracies", "baseline", "message"),
    [
        ([], [], "one accuracy and one baseline a domain"),
        ([1.0], [1.0, 2.0], "one accuracy and one baseline a domain"),
        ([101.0], [1.0], "expected accuracies in percent"),
        ([50.0], [100.0], "the baseline makes no error on a domain"),
    ],
)
def test_score_that_is_not_defined_is_refused(accuracies, baseline, message):
    with pytest.raises(OptionError, match=message):
        decathlon_score(accuracies, baseline=baseline)
