"""A grid is spread out as it is written, checked before any work, and its cells are known by what decides them."""

import math

import pytest

from convpeft.comparing.cells import Range, with_keys
from convpeft.comparing.grid import make_grid, read_grid
from convpeft.errors import OptionError

BASE = {"model": {"source": "small-cnn"}, "data": {"source": "glyphs:digits"}}
LORA = {"name": "lora", "method": {"name": "lora", "rank": 2}}
PROBE = {"name": "probe", "method": {"name": "probe"}}
TUNE = {"trials": 4, "train": {"lr": {"low": 1e-4, "high": 1.0}}}


def grid(**tables):
    return make_grid({"base": BASE, "arm": [LORA]} | tables, where="g.toml")


def test_lists_of_an_arm_make_a_product():
    made = grid(arm=[{"name": "a", "method": {"name": "lora", "rank": [1, 2], "include": ["conv"]}, "train.lr": 0.1}])
    assert made.arms == ("a, rank 1", "a, rank 2")
    assert [cell.recipe.method.include for cell in made.cells] == [["conv"], ["conv"]]


def test_lists_of_lists_vary_what_is_a_list_itself():
    made = grid(arm=[{"name": "a", "method": {"name": "lora", "include": [["conv"], ["projection"]]}}])
    assert [cell.recipe.method.include for cell in made.cells] == [["conv"], ["projection"]]


def test_shared_axes_make_every_combination():
    made = grid(arm=[LORA, PROBE], grid={"seeds": [0, 1], "fractions": [0.1, 1.0], "train": {"epochs": [1, 2]}})
    found = {(c.arm, c.recipe.data.fraction, c.recipe.train.epochs, c.seed) for c in made.cells}
    assert len(found) == len(made.cells) == 2 * 2 * 2 * 2
    assert all(cell.recipe.train.seed == cell.seed for cell in made.cells)


def test_settings_give_keys_that_go_together():
    rows = [
        {"data": {"per_class": 5, "val_per_class": 3}, "train.epochs": 8},
        {"per_class": 50, "train": {"epochs": 2}},
    ]
    made = grid(grid={"seeds": [0, 1], "setting": rows, "train": {"batch_size": [4, 8]}})
    found = {(c.recipe.data.per_class, c.recipe.data.val_per_class, c.recipe.train.epochs) for c in made.cells}
    assert found == {(5, 3, 8), (50, None, 2)}
    assert len(made.cells) == 2 * 2 * 2
    assert made.cells[0].setting == {"per_class": 5, "val_per_class": 3, "epochs": 8, "batch_size": 4}


def test_what_is_set_beside_the_file_replaces_what_it_says(tmp_path):
    path = tmp_path / "g.toml"
    path.write_text(
        'base = { model.source = "small-cnn", data.source = "glyphs:digits" }\n'
        '[[arm]]\nname = "a"\nmethod.name = "probe"\n[grid]\nseeds = [0, 1]\n'
    )
    told = ("grid.seeds=[5]", "base.train={epochs=3}", 'arm=[{name="b", method={name="lora"}}]')
    made = read_grid(path, assign=told)
    assert [(c.arm, c.seed, c.recipe.train.epochs, c.recipe.method.name) for c in made.cells] == [("b", 5, 3, "lora")]
    assert made.assigned == told
    with pytest.raises(OptionError, match=r"g\.toml: 'grids' is no table of a grid\. Did you mean 'grid'\?"):
        read_grid(path, assign=["grids.seeds=[5]"])


def test_models_may_carry_weights():
    models = [{"source": "small-cnn", "weights": "a.safetensors"}, "cifar-resnet/20"]
    made = grid(grid={"models": models})
    assert [(c.recipe.model.source, c.recipe.model.weights) for c in made.cells] == [
        ("small-cnn", "a.safetensors"),
        ("cifar-resnet/20", None),
    ]


def test_alpha_follows_the_rank():
    made = grid(arm=[{"name": "a", "method": {"name": "lora", "rank": [2, 8], "alpha_per_rank": [1, 2]}}])
    assert [cell.recipe.method.options["alpha"] for cell in made.cells] == [2.0, 4.0, 8.0, 16.0]


def test_digest_ignores_the_order_of_keys_and_tells_values_apart():
    first = grid(base={"data": BASE["data"], "model": BASE["model"]}).cells[0]
    assert first.key == grid().cells[0].key
    assert grid(base=BASE | {"train": {"epochs": 11}}).cells[0].key != first.key
    assert grid(tune=TUNE).cells[0].key != first.key


def test_digest_ignores_the_directory():
    cell = grid().cells[0]
    moved = type(cell)(cell.arm, cell.setting, cell.seed, with_keys(cell.recipe, {"out": "elsewhere"}))
    assert moved.key == cell.key


def test_studies_are_shared_by_seeds_and_never_use_one_of_theirs():
    made = grid(arm=[LORA, PROBE], grid={"seeds": [0, 1, 2]}, tune=TUNE)
    assert len(made.studies) == 2
    assert {study.recipe.train.seed for study in made.studies} == {1000}
    assert {study.trials for study in made.studies} == {4}


def test_points_are_spread_evenly_and_alike_for_every_arm():
    first, second = grid(arm=[LORA, PROBE], tune=TUNE).studies
    rates = [first.point(number)["train.lr"] for number in range(4)]
    assert rates == [second.point(number)["train.lr"] for number in range(4)]
    assert [math.log10(rate) for rate in rates] == pytest.approx([-3.5, -2.5, -1.5, -0.5], abs=0.002)


def test_an_arm_that_gives_a_tuned_key_is_not_tuned():
    made = grid(arm=[LORA | {"train": {"lr": 0.1}}, PROBE], tune=TUNE)
    assert [cell.study is None for cell in made.cells] == [True, False]


def test_an_arm_may_have_a_range_of_its_own():
    own = LORA | {"tune": {"train": {"lr": {"low": 0.1, "high": 0.2, "log": False}}}}
    assert grid(arm=[own], tune=TUNE).studies[0].ranges == {"train.lr": Range(0.1, 0.2, log=False)}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"arms": []}, "'arms' is no table of a grid. Did you mean 'arm'?"),
        ({"arm": [LORA | {"train": {"epoch": 1}}]}, "arm 'lora': train.epoch is not a key. Did you mean 'epochs'?"),
        ({"arm": [{"name": "a", "method": {"name": "lroa"}}]}, "arm 'a': method='lroa' does not exist. Did you mean"),
        ({"arm": [{"name": "a", "method": {"name": "lora", "rnak": 1}}]}, "has no option 'rnak'. Did you mean 'rank'?"),
        ({"arm": []}, "[[arm]]: expected a list with something in it"),
        ({"arm": [{"method": {"name": "lora"}}]}, "an [[arm]] has no name. Write name"),
        ({"arm": [LORA, LORA]}, "two arms are called 'lora'"),
        ({"arm": [LORA, LORA | {"name": "b"}]}, "are the same recipe. Leave one of them out"),
        ({"arm": [LORA | {"out": "x"}]}, "'out' is chosen by the comparison"),
        ({"arm": [{"name": "a", "method": {"name": "lora", "alpha_per_rank": 1}}]}, "needs a method.rank to multiply"),
        ({"base": 3}, "[base]: expected a table, got int"),
        ({"grid": {"seed": [1]}}, "'seed' is neither an axis nor a recipe key. Did you mean 'seeds'?"),
        ({"grid": {"setting": [{"epoch": 1}]}}, "[[grid.setting]] 'epoch' is neither an axis nor a recipe key"),
        ({"grid": {"setting": [3]}}, "[[grid.setting]]: expected a table, got int"),
        (
            {"grid": {"setting": [{"per_class": 1}], "data": {"per_class": [2]}}},
            "[grid] gives 'data.per_class' twice. Leave it out in one of the two places.",
        ),
        ({"grid": {"seeds": [1, 1]}}, "expected different whole numbers, 0 or more"),
        ({"baseline": "lroa"}, "baseline='lroa' is no arm. Did you mean 'lora'?"),
        ({"tune": {"trials": 0}}, "trials=0: expected a whole number of 1 or more, the same for all"),
        ({"tune": TUNE | {"seed": -1}}, "[tune] seed=-1: expected a whole number, 0 or more"),
        ({"tune": {"trials": 2}}, "[tune] names no key. Write"),
        ({"tune": TUNE | {"trails": 2}}, "'trails' is no key of tuning. Did you mean 'trials'?"),
        ({"tune": {"trials": 2, "train.lr": 3}}, "train.lr: expected { low = ..., high = ..., log = true }"),
        ({"tune": {"trials": 2, "train.lr": {"low": 2, "high": 1}}}, "expected low < high, and low > 0"),
        ({"tune": {"trials": 2, "train.lrr": {"low": 1, "high": 2}}}, "train.lrr is not a key. Did you mean 'lr'?"),
        ({"tune": TUNE, "arm": [LORA | {"tune": {"train": {"momentum": [0.1]}}}]}, "is not tuned for all arms"),
        (
            {"grid": {"seeds": [*range(1000)], "train": {"epochs": [*range(1, 102)]}}},
            "makes more than 10,000 runs",
        ),
    ],
)
def test_wrong_grid_is_one_line_that_names_the_nearest(tables, message):
    with pytest.raises(OptionError) as caught:
        grid(**tables)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("g.toml: ")


def test_baseline_is_the_first_arm_unless_it_is_named():
    assert grid(arm=[PROBE, LORA]).baseline == "probe"
    assert grid(arm=[PROBE, LORA], baseline="lora").baseline == "lora"
