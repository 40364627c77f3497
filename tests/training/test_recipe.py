"""Recipes are checked as a whole before any work, and survive being written down."""

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convpeft.errors import OptionError
from convpeft.training import Recipe, make_recipe, read_recipe
from convpeft.training.recipe import parse_value, set_keys
from measuring import counted, times

LEAST = {"model": {"source": "small-cnn"}, "data": {"source": "folder:images"}}
# Every key of every section, each away from its default.
FULL: dict[str, Any] = {
    "out": 'runs/with "quotes", \\ and ü',
    "warm_start": "runs/before",
    "force": True,
    "model": {
        "source": "timm/resnet18",
        "weights": "w.safetensors",
        "pretrained": False,
        "in_channels": 4,
        "image_size": 64,
        "head": "fc",
        "keep_head": True,
    },
    "data": {
        "source": "folder:a\tb",
        "limit": 100,
        "fraction": 0.5,
        "per_class": 5,
        "val_per_class": 6,
        "fold": 2,
        "val_fraction": 0.125,
        "test_fraction": 1e-05,
        "augment": "flip",
        "skip_broken": True,
    },
    "method": {
        "name": "bitfit",
        "include": ["conv", "layer4.*"],
        "exclude": ["head"],
        "norm": "adapt",
        "rank_policy": "skip",
        "also_train": ["conv1"],
        "rank": 3,
        "alpha": 0.1,
        "rslora": True,
        "flavour": "plain\x7fer",
    },
    "train": {
        "epochs": 7,
        "batch_size": 9,
        "lr": 3e-07,
        "optimizer": "sgd",
        "weight_decay": 0.5,
        "momentum": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "objective": "lwf",
        "lwf_weight": 0.5,
        "lwf_temperature": 3.0,
        "l2sp_weight": 0.25,
        "clip": 0.0,
        "accumulate": 2,
        "patience": 3,
        "precision": "bf16",
        "kernel": "hybrid",
        "layout": "channels_last",
        "fold": False,
        "autotune": True,
        "checkpointing": True,
        "compile": True,
        "workers": 1,
        "prefix_cache": "off",
        "prefix_views": 3,
        "seed": 2**32 - 1,
    },
}


def changed(section: str, **keys: Any) -> dict[str, Any]:
    """Return the least recipe with keys of one section added."""
    return LEAST | {section: LEAST.get(section, {}) | keys}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(OptionError) as caught:
        make_recipe(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_of_every_section_has_a_value_in_the_full_recipe():
    """Guards the tests below: a new key has to be added to FULL."""
    for name, field in Recipe.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            assert set(field.annotation.model_fields) <= set(FULL[name])
        else:
            assert name in FULL


def test_recipe_written_as_toml_is_read_back_equal(tmp_path):
    recipe = make_recipe(FULL)
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    assert make_recipe(read_recipe(file)) == recipe


def test_toml_of_a_recipe_holds_every_value():
    assert tomllib.loads(make_recipe(FULL).to_toml()) == FULL


def test_recipe_with_defaults_is_read_back_equal():
    recipe = make_recipe(LEAST)
    assert make_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_options_of_the_method_are_those_that_no_key_names():
    assert make_recipe(FULL).method.options == {"rank": 3, "alpha": 0.1, "rslora": True, "flavour": "plain\x7fer"}


def test_integer_stands_for_a_float():
    assert make_recipe(changed("train", lr=1, clip=0)).train.lr == 1.0


@pytest.mark.promise("B06")
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (changed("train", epoch=3), ("train.epoch is not a key", "Did you mean 'epochs'?")),
        (changed("data", sourc="x"), ("data.sourc is not a key", "Did you mean 'source'?")),
        (LEAST | {"trian": {}}, ("trian is not a key", "Did you mean 'train'?")),
        (LEAST | {"train": 3}, ("train=3", "not a section", "[train]")),
        (changed("train", epochs="3"), ("train.epochs='3'", "integer")),
        (changed("train", epochs=True), ("train.epochs=True", "integer")),
        (changed("train", epochs=0), ("train.epochs=0", "greater than or equal to 1")),
        (changed("train", lr=float("nan")), ("train.lr=nan", "finite")),
        (changed("train", lr=float("inf")), ("train.lr=inf", "finite")),
        (changed("train", lr=0.0), ("train.lr=0.0", "greater than 0")),
        (changed("train", lr=10**400), ("train.lr is a whole number of more than 64 bits",)),
        (changed("train", lr=10**5000), ("train.lr is a whole number of more than 64 bits",)),
        (changed("train", epochs=2**63), ("train.epochs is a whole number of more than 64 bits",)),
        (changed("train", lr="0.1"), ("train.lr='0.1'", "number")),
        (changed("train", optimizer="adam"), ("train.optimizer='adam'", "'adamw' or 'sgd'")),
        (changed("train", seed=-1), ("train.seed=-1",)),
        (changed("train", warmup=1.0), ("train.warmup=1.0", "less than 1")),
        (changed("model", in_channels=5), ("model.in_channels=5",)),
        (changed("data", val_fraction=0), ("data.val_fraction=0",)),
        (changed("method", include="conv"), ("method.include='conv'", "list")),
        (changed("method", norm="melted"), ("method.norm='melted'", "'frozen', 'adapt' or 'train'")),
        ({"model": LEAST["model"]}, ("data is missing", "--data")),
        ({"data": LEAST["data"]}, ("model is missing", "--model")),
        (LEAST | {"model": {}}, ("model.source is missing", "--model")),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_wrong_recipe_is_refused_in_one_line_that_names_the_key(values, words):
    message = refusal(values)
    for word in words:
        assert word in message


def test_refusal_names_the_file():
    with pytest.raises(OptionError, match=r"^mine\.toml: train\.epoch is not a key"):
        make_recipe(changed("train", epoch=3), where="mine.toml")


def test_values_given_are_not_changed():
    values = changed("train", lr=1)
    make_recipe(values)
    assert values == changed("train", lr=1)
    assert type(values["train"]["lr"]) is int


@pytest.mark.promise("B06")
def test_key_given_twice_is_refused(tmp_path):
    file = tmp_path / "twice.toml"
    file.write_text("[train]\nlr = 1\nlr = 2\n")
    with pytest.raises(OptionError, match=r"twice\.toml: cannot be read as TOML"):
        read_recipe(file)


def test_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"gone\.toml: cannot be read \(No such file"):
        read_recipe(tmp_path / "gone.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = ", b"a = " + b"9" * 5000, b"a = " + b"[" * 5000])
def test_file_that_is_no_toml_is_refused(tmp_path, content):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=r"bad\.toml: cannot be read as TOML"):
        read_recipe(file)


def test_byte_order_mark_is_read_over(tmp_path):
    file = tmp_path / "windows.toml"
    file.write_bytes(b'\xef\xbb\xbf[model]\r\nsource = "small-cnn"\r\n')
    assert read_recipe(file) == {"model": {"source": "small-cnn"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", "False"),
        ("lora", "lora"),
        ("'quoted'", "quoted"),
        ('["conv", "head"]', ["conv", "head"]),
        ("", ""),
        ("folder:a=b", "folder:a=b"),
        ("2024-01-01", "2024-01-01"),
        ("1\nother = 2", "1\nother = 2"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_value_is_toml_or_else_text(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_set_puts_a_value_into_a_section_that_is_not_there_yet():
    assert set_keys({}, ["train.epochs=5", "out=runs/a=b"]) == {"train": {"epochs": 5}, "out": "runs/a=b"}


def test_set_replaces_a_value():
    assert set_keys({"train": {"epochs": 1, "lr": 2.0}}, ["train.epochs = 5"]) == {"train": {"epochs": 5, "lr": 2.0}}


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", "train.=3", ".epochs=3"])
def test_set_without_key_or_value_is_refused(assignment):
    with pytest.raises(OptionError, match=r"expected KEY=VALUE, for example train\.epochs=5"):
        set_keys({}, [assignment])


def test_set_below_a_value_is_refused():
    with pytest.raises(OptionError, match="'train' is a value in the recipe, not a section"):
        set_keys({"train": 3}, ["train.epochs=3"])


KEYS = st.sampled_from([(section, key) for section, keys in FULL.items() if isinstance(keys, dict) for key in keys])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers().map(lambda number: number * 10**400),
    st.floats(),
    st.text(max_size=12),
    st.binary(max_size=4),
    st.dates(),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=5), SCALARS, max_size=3))
MUTATIONS = st.one_of(
    st.tuples(st.just("value"), KEYS, VALUES),
    st.tuples(st.just("drop"), KEYS, st.none()),
    st.tuples(st.just("rename"), KEYS, st.text(max_size=12)),
    st.tuples(st.just("section"), KEYS, VALUES),
    st.tuples(st.just("extra"), KEYS, st.text(max_size=12)),
)


@pytest.mark.promise("B06")
@settings(max_examples=times(full=10_000, reduced=200))
@given(mutations=st.lists(MUTATIONS, min_size=1, max_size=4))
def test_mutated_recipe_is_accepted_or_refused_in_one_line(mutations):
    values: dict[str, Any] = {key: dict(each) if isinstance(each, dict) else each for key, each in FULL.items()}
    for kind, (section, key), value in mutations:
        keys = values.get(section)
        if kind == "section":
            values[section] = value
        elif kind == "extra":
            values[value] = {}
        elif isinstance(keys, dict):
            if kind == "value":
                keys[key] = value
            elif kind == "drop":
                keys.pop(key, None)
            elif key in keys:
                keys[value] = keys.pop(key)
    counted("mutated recipes")
    try:
        recipe = make_recipe(values)
    except OptionError as error:
        assert str(error).isprintable() or "\n" not in str(error)
        assert len(str(error)) < 1000
    else:
        assert isinstance(recipe, Recipe)


@settings(max_examples=200)
@given(content=st.binary(max_size=40), place=st.integers(0, 800))
def test_damaged_recipe_file_is_accepted_or_refused(tmp_path_factory, content, place):
    file = tmp_path_factory.getbasetemp() / "damaged.toml"
    whole = make_recipe(FULL).to_toml().encode()
    file.write_bytes(whole[:place] + content + whole[place + len(content) :])
    try:
        make_recipe(read_recipe(file))
    except OptionError as error:
        assert "\n" not in str(error)


def test_recipe_of_the_library_is_read_from_a_path(tmp_path):
    from convpeft.training.runs import as_recipe

    file = tmp_path / "recipe.toml"
    file.write_text(make_recipe(FULL).to_toml(), encoding="utf-8")
    assert as_recipe(file) == as_recipe(str(file)) == as_recipe(FULL) == make_recipe(FULL)


def test_what_is_no_recipe_at_all_is_refused():
    from convpeft.training.runs import as_recipe

    with pytest.raises(OptionError, match=r"expected a Recipe, its values or the path of a TOML file, got int"):
        as_recipe(42)  # type: ignore[arg-type]


def test_options_of_mixed_methods_are_sections_of_their_own(tmp_path):
    values = make_recipe(
        {
            "model": {"source": "small-cnn"},
            "data": {"source": "glyphs"},
            "method": {"name": "lora+lora-c", "lora": {"rank": 4, "include": ["conv"]}, "lora-c": {"alpha": None}},
        }
    )
    text = values.to_toml()
    assert '[method.lora]\nrank = 4\ninclude = ["conv"]' in text
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    again = make_recipe(read_recipe(path))
    assert again.method.options == {"lora": {"rank": 4, "include": ["conv"]}, "lora-c": {}}
