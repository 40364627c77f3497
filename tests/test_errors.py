"""Every error of the library is one printable line, whatever a file has put into it."""

import copy
import pickle

import pytest

from convpeft import errors

CHILDREN = [errors.OptionError, errors.ModelError, errors.AdapterFileError, errors.DataError, errors.RunError]


@pytest.mark.parametrize("child", CHILDREN)
def test_message_is_one_printable_line(child: type[errors.ConvpeftError]) -> None:
    error = child("file 'a\nb':\tis \x1b[2Jnot\r\n whole.\u2028Get it again.")
    assert str(error) == r"file 'a b': is \x1b[2Jnot whole. Get it again."
    assert str(child("two  spaces, ümlaut and 猫 stay")) == "two  spaces, ümlaut and 猫 stay"


def test_every_error_is_a_child_of_the_one_base() -> None:
    assert set(errors.ConvpeftError.__subclasses__()) == set(CHILDREN)


def test_error_survives_pickle_and_copy() -> None:
    error = errors.DataError("one line")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is errors.DataError
        assert str(twin) == "one line"
