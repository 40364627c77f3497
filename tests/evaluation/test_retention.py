import numpy as np
import pytest

from convpeft.errors import OptionError
from convpeft.evaluation import agreement, is_retained, retention


def test_retention_is_the_share_that_is_left():
    assert retention(0.5, 0.25) == 0.5


@pytest.mark.parametrize(("base", "adapted"), [(0.0, 0.5), (97.0, 95.0), (0.9, 95.0), (0.9, float("nan"))])
def test_retention_refuses_what_is_no_fraction(base, adapted):
    with pytest.raises(OptionError, match=r"expected base_accuracy in .* Pass fractions, not percent"):
        retention(base, adapted)


def test_equal_bits_are_retained():
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert is_retained(logits, logits.copy())


def test_one_unit_in_the_last_place_is_not_retained():
    logits = np.ones((3, 4), dtype=np.float32)
    changed = logits.copy()
    changed[2, 3] = np.nextafter(np.float32(1), np.float32(2))
    assert not is_retained(logits, changed)


def test_another_shape_is_not_retained():
    assert not is_retained(np.zeros((2, 3), dtype=np.float32), np.zeros((3, 2), dtype=np.float32))


def test_agreement_is_the_share_of_equal_answers():
    assert agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("other", [np.array([1]), np.array([], dtype=int)])
def test_agreement_refuses_different_images(other):
    with pytest.raises(
        OptionError, match=r"agreement: expected two equally long, non-empty lists of classes, .* Evaluate both on"
    ):
        agreement(np.array([], dtype=int) if len(other) == 0 else np.array([1, 2]), other)
