"""Preprocessing and ModelSource: what exists can be used, and a file's record is checked field by field."""

import dataclasses
import json

import pytest

from convpeft.errors import AdapterFileError, OptionError
from convpeft.models import ModelSource, Preprocessing

GREY = Preprocessing(size=(28, 30), resize="pad", crop=1.0, mean=(0.1,), std=(0.2,), channels=1)
SOURCE = ModelSource(source="small-cnn", num_classes=36, in_channels=1, weights="base.safetensors", pretrained=True)

BAD_PREPROCESSING = [
    ("size", [28], "height and width"),
    ("size", [28, 0], "height and width"),
    ("size", [28, 28.0], "height and width"),
    ("size", [28, True], "height and width"),
    ("size", "28", "height and width"),
    ("size", [10**9, 10**9], "from 1 to 8192"),
    ("resize", "stretch", "one of crop, squash, pad"),
    ("resize", ["crop"], "one of crop, squash, pad"),
    ("crop", 0, "in (0, 1]"),
    ("crop", 1.01, "in (0, 1]"),
    ("crop", float("nan"), "in (0, 1]"),
    ("crop", "1", "in (0, 1]"),
    ("channels", 5, "from 1 to 4"),
    ("channels", True, "from 1 to 4"),
    ("mean", [0.1, 0.2], "each of the 1 channels"),
    ("mean", [float("inf")], "finite number"),
    ("mean", [10**400], "finite number"),
    ("std", [0.0], "positive number"),
    ("std", [None], "positive number"),
    ("interpolation", "lanczos", "one of bilinear, bicubic, nearest"),
]

BAD_SOURCE = [
    ("source", 3, "printable string"),
    ("source", "", "printable string"),
    ("source", "small-cnn\nrm", "printable string"),
    ("source", "x" * 201, "printable string"),
    ("num_classes", 0, "from 1 to 1000000"),
    ("num_classes", True, "from 1 to 1000000"),
    ("num_classes", 10**12, "from 1 to 1000000"),
    ("in_channels", 0, "from 1 to 4"),
    ("in_channels", None, "from 1 to 4"),
    ("weights", 1, "a path or nothing"),
    ("pretrained", 1, "true or false"),
]


@pytest.mark.parametrize("record", [GREY, Preprocessing(), SOURCE])
def test_a_record_survives_json(record):
    read_back = json.loads(json.dumps(record.to_dict()))
    assert type(record).from_dict(read_back) == record


@pytest.mark.parametrize(("field", "value", "expected"), BAD_PREPROCESSING)
def test_preprocessing_refuses_a_bad_value_from_a_file(field, value, expected):
    with pytest.raises(AdapterFileError) as caught:
        Preprocessing.from_dict({**GREY.to_dict(), field: value}, where="adapter_config.json")
    assert str(caught.value).startswith(f"adapter_config.json: preprocessing.{field}: expected")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value", "expected"), BAD_SOURCE)
def test_a_model_source_refuses_a_bad_value_from_a_file(field, value, expected):
    with pytest.raises(AdapterFileError) as caught:
        ModelSource.from_dict({**SOURCE.to_dict(), field: value}, where="adapter_config.json")
    assert str(caught.value).startswith(f"adapter_config.json: model.{field}: expected")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", [GREY, SOURCE])
def test_a_record_with_an_unknown_field_is_refused(record):
    with pytest.raises(AdapterFileError, match=r"expected exactly the fields .* got unknown 'exec'"):
        type(record).from_dict({**record.to_dict(), "exec": "1"})


@pytest.mark.parametrize("record", [GREY, SOURCE])
def test_a_record_with_a_missing_field_is_refused(record):
    first = dataclasses.fields(record)[0].name
    short = {name: value for name, value in record.to_dict().items() if name != first}
    with pytest.raises(AdapterFileError, match=f"got missing {first}"):
        type(record).from_dict(short)


@pytest.mark.parametrize("value", [None, [], "crop", 3])
def test_what_is_no_table_is_refused(value):
    with pytest.raises(AdapterFileError, match="expected a table of size, resize"):
        Preprocessing.from_dict(value)


def test_a_wrong_argument_in_python_is_an_option_error():
    with pytest.raises(OptionError, match=r"^preprocessing\.crop: expected a number in \(0, 1\], got 2\.$"):
        Preprocessing(crop=2)


def test_fewer_channels_average_the_statistics():
    grey = Preprocessing(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3)).for_channels(1)
    assert (grey.channels, grey.mean, grey.std) == (1, pytest.approx((0.4,)), pytest.approx((0.2,)))


def test_more_channels_repeat_the_statistics():
    assert Preprocessing(mean=(0.2, 0.4, 0.6)).for_channels(4).mean == (0.2, 0.4, 0.6, 0.2)
    assert GREY.for_channels(3).mean == (0.1, 0.1, 0.1)


def test_only_an_import_path_imports_code():
    def imports(source):
        return dataclasses.replace(SOURCE, source=source).imports_code

    assert imports("mylab.nets:small")
    assert not any(map(imports, ("timm/resnet18.a1_in1k", "torchvision/resnet18:DEFAULT", "small-cnn")))
