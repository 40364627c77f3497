"""Values and names that a file or a caller may give and that would do harm later are refused at once, in one line."""

from pathlib import Path

import numpy as np
import pytest

import convpeft
from convpeft.adapter_file import find_adapter, write_adapter
from convpeft.data.folders import load_folder, natural_key
from convpeft.data.quoting import plainly, quoted, reason
from convpeft.errors import AdapterFileError, DataError, OptionError
from convpeft.training.recipe import make_recipe, read_recipe
from safety.readers import network
from safety.samples import pictures

GOOD = {"model": {"source": "small-cnn"}, "data": {"source": "glyphs:digits"}}


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.promise("B06", "S02")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": {"rank": 16**6000}}, "is a whole number of more than 64 bits"),
        ({"train": {"epochs": -(2**63) - 1}}, "is a whole number of more than 64 bits"),
        ({"method": {"x": nested(40)}}, "nested more than 16 deep"),
        ({"method": {"x": nested(5000)}}, "nested more than 16 deep"),
        ({"two\nlines": 1}, r"'two\\nlines' is not a key"),
        ({"k" * 100_000: 1}, "is not a key"),
    ],
)
def test_recipe_that_no_error_could_show_is_refused(values: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message) as refusal:
        make_recipe(GOOD | values)
    assert len(str(refusal.value)) < 500
    assert len(str(refusal.value).splitlines()) == 1


def test_recipe_of_many_digits_is_refused_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'model.source = "a"\ndata.source = "b"\ntrain.epochs = 0x{"f" * 6000}\n')
    with pytest.raises(OptionError, match="whole number of more than 64 bits"):
        make_recipe(read_recipe(tmp_path / "x.toml"))


@pytest.mark.promise("S03")
@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a/" * 3000, "two\nlines"])
def test_adapter_under_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(AdapterFileError, match="holds no adapter") as refusal:
        find_adapter(name)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.promise("S03")
@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_saving_under_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    model = convpeft.attach(network(), "lora", rank=1, include=["conv"])
    with pytest.raises(AdapterFileError, match="cannot be written") as refusal:
        convpeft.save(model, tmp_path / name)
    assert len(str(refusal.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_adapter_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(AdapterFileError, match="exists and is not an adapter"):
        write_adapter(tmp_path, {}, {})
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.promise("S03")
@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "\x7f", "\u202egnp"])
def test_class_folder_that_steers_the_terminal_is_refused(tmp_path: Path, name: str) -> None:
    for each in (name, "other"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "x.png").write_bytes(pictures()["png"])
    with pytest.raises(DataError, match=r"is not printable text\. Rename the class") as refusal:
        load_folder(tmp_path)
    assert str(refusal.value).isprintable()


def test_broken_picture_is_named_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "two\nlines\x1b.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a/two lines\\x1b\.png") as refusal:
        load_folder(tmp_path)
    assert str(refusal.value).isprintable()


def test_numbers_of_any_length_are_ordered() -> None:
    rng = np.random.default_rng(0)
    numbers = [str(number) for number in rng.integers(0, 10**9, 50)] + [
        "9" * 5000,
        "1" + "0" * 5000,
        "007",
        "7",
        "0",
        "00",
    ]
    assert sorted(numbers[:50], key=natural_key) == sorted(numbers[:50], key=int)
    assert sorted(["9" * 5000, "7", "1" + "0" * 5000, "007"], key=natural_key)[-2:] == ["9" * 5000, "1" + "0" * 5000]
    assert len({natural_key(each) for each in ("7", "07", "007")}) == 3


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u2028", "\x85", "\ud800", "x" * 1000])
def test_quoted_text_is_short_and_on_one_line(text: str) -> None:
    for shown in (quoted(text), plainly(text), reason(ValueError(text))):
        assert shown.isprintable()
    assert len(quoted(text)) < 130
    assert len(reason(ValueError(text))) < 210
