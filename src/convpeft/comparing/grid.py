"""A grid: from one TOML file to the list of its runs, checked whole before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from convpeft.comparing.cells import Cell, Range, Study, with_keys
from convpeft.errors import OptionError, nearest
from convpeft.training.options import check_method
from convpeft.training.recipe import Recipe, make_recipe, put_key, read_recipe, set_keys

_TABLES = ("base", "arm", "grid", "tune", "baseline")
_SHORT_AXES = {"fractions": "data.fraction", "per_class": "data.per_class", "models": "model.source"}
_SHOWN = {"models": "model", "fractions": "fraction"}
_LISTS = ("include", "exclude", "also_train")  # method keys whose value is a list itself
_PER_RANK = "method.alpha_per_rank"
_TUNING_SEED = 1000
_MOST = 10_000  # cells; more is a slip


@dataclass(frozen=True)
class Tuning:
    """What every arm is allowed to try: so many trials of values in these ranges, with a seed of their own."""

    trials: int
    seed: int
    ranges: dict[str, Range]


@dataclass(frozen=True)
class Grid:
    """Every run of a comparison, in the order in which they are shown."""

    cells: tuple[Cell, ...]
    baseline: str
    tuning: Tuning | None
    where: str
    assigned: tuple[str, ...] = ()  # what was set beside the file, KEY=VALUE

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, with what varies in them."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def studies(self) -> tuple[Study, ...]:
        """Each study once."""
        return tuple({cell.study.key: cell.study for cell in self.cells if cell.study is not None}.values())


def read_grid(path: str | Path, *, assign: Sequence[str] = ()) -> Grid:
    """Read a grid from a TOML file.

    Args:
        path: The file.
        assign: What is set instead of what the file says, such as "grid.seeds=[0]"; values are TOML.

    Raises:
        OptionError: If the file cannot be read, or a key or value in it is wrong; the nearest valid one is named.
    """
    grid = make_grid(set_keys(read_recipe(path), assign), where=str(path))
    return replace(grid, assigned=tuple(assign))


def make_grid(values: Mapping[str, Any], *, where: str = "grid") -> Grid:
    """Check the values of a grid and spread it out.

    Raises:
        OptionError: If a key or value is wrong, naming the nearest valid one.
    """
    for key in values:
        if key not in _TABLES:
            raise OptionError(f"{where}: {key!r} is no table of a grid. {nearest(key, _TABLES)}")
    arms: list[Any] = _a_list(values.get("arm"), f"{where}: [[arm]]")
    base = flat(_a_table(values.get("base", {}), f"{where}: [base]"))
    seeds, settings = _shared(_a_table(values.get("grid", {}), f"{where}: [grid]"), where)
    tuning = _tuning(values["tune"], where) if "tune" in values else None
    cells: list[Cell] = []
    known: set[str] = set()
    for arm in arms:
        name = _name_of(arm, where)
        if name in known:
            raise OptionError(f"{where}: two arms are called {name!r}. Give each a name of its own.")
        known.add(name)
        own = _tuning_of(arm, tuning, f"{where}: arm {name!r}")
        keys = flat({key: value for key, value in arm.items() if key not in ("name", "tune")})
        for label, chosen in _spread(keys):
            full = name + "".join(f", {part}" for part in label)
            if len(cells) + len(settings) * len(seeds) > _MOST:
                raise OptionError(f"{where}: makes more than {_MOST:,} runs. Shorten its lists.")
            for setting, shared in settings:
                cells += _cells(full, base | shared | chosen, setting, seeds, own, f"{where}: arm {name!r}")
    names = list(dict.fromkeys(cell.arm for cell in cells))
    _check_different(cells, where)
    baseline = values.get("baseline", names[0])
    if baseline not in names:
        raise OptionError(f"{where}: baseline={baseline!r} is no arm. {nearest(str(baseline), names)}")
    return Grid(tuple(cells), str(baseline), tuning, where)


def flat(values: Mapping[str, Any], place: tuple[str, ...] = ()) -> dict[str, Any]:
    """Tables in each other as one with dotted keys; a range or a list is a value.

    >>> flat({"train": {"lr": 0.1, "epochs": [1, 2]}})
    {'train.lr': 0.1, 'train.epochs': [1, 2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and not {"low", "high"} & set(cast(dict[str, Any], value)):
            found |= flat(cast(dict[str, Any], value), (*place, key))
        else:
            found[".".join((*place, key))] = value
    return found


def _cells(
    arm: str, keys: dict[str, Any], setting: dict[str, Any], seeds: list[int], tuning: Tuning | None, where: str
) -> Iterator[Cell]:
    for seed in seeds:
        recipe = _recipe(keys | {"train.seed": seed}, where)
        ranges = {} if tuning is None else {k: r for k, r in tuning.ranges.items() if k not in keys}
        if tuning is None or not ranges:
            yield Cell(arm, setting, seed, recipe)
            continue
        tuned = with_keys(recipe, {"train.seed": tuning.seed})
        for place in (0.0, 1.0):
            with_keys(tuned, {key: each.at(place) for key, each in ranges.items()}, where=f"{where}, [tune]")
        yield Cell(arm, setting, seed, recipe, Study(tuned, ranges, tuning.trials))


def _recipe(keys: Mapping[str, Any], where: str) -> Recipe:
    values: dict[str, Any] = {}
    for key, value in keys.items():
        if key != _PER_RANK:
            put_key(values, key, value)
    if _PER_RANK in keys:
        rank = keys.get("method.rank")
        if not isinstance(rank, int) or not isinstance(keys[_PER_RANK], int | float):
            raise OptionError(f"{where}: {_PER_RANK} needs a method.rank to multiply. Give both as numbers.")
        put_key(values, "method.alpha", float(keys[_PER_RANK] * rank))
    if "out" in values:
        raise OptionError(f"{where}: 'out' is chosen by the comparison. Leave it out and give --out.")
    recipe = make_recipe(values, where=where)
    try:
        check_method(recipe.method)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None
    return recipe


def _shared(table: Mapping[str, Any], where: str) -> tuple[list[int], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """The seeds, and every combination of the other shared axes: what it is called, and its recipe keys."""
    table = dict(table)
    seeds: list[Any] = _a_list(table.pop("seeds", [0]), f"{where}: [grid] seeds")
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise OptionError(f"{where}: [grid] seeds={seeds}: expected different whole numbers, 0 or more.")
    axes: list[list[tuple[dict[str, Any], dict[str, Any]]]] = []
    if "setting" in table:
        place = f"{where}: [[grid.setting]]"
        axes.append([_together(_a_table(each, place), place) for each in _a_list(table.pop("setting"), place)])
    for key, value in flat(table).items():
        place = f"{where}: [grid]"
        axes.append([_chosen(key, each, place) for each in _a_list(value, f"{place} {key}")])
    combined: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for parts in itertools.product(*axes):
        shown: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        for names, given in parts:
            if twice := sorted(keys.keys() & given.keys()):
                raise OptionError(f"{where}: [grid] gives {twice[0]!r} twice. Leave it out in one of the two places.")
            shown, keys = shown | names, keys | given
        combined.append((shown, keys))
    return cast(list[int], seeds), combined


def _together(table: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of several axes that go together: what they are called, and their recipe keys."""
    parts = [_chosen(key, value, where) for key, value in flat(table).items()]
    return {k: v for shown, _ in parts for k, v in shown.items()}, {k: v for _, keys in parts for k, v in keys.items()}


def _chosen(key: str, value: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One value of an axis: what it is called, and its recipe keys."""
    recipe_key = _SHORT_AXES.get(key, key)
    if "." not in recipe_key:
        known = [*_SHORT_AXES, "seeds", "setting"]
        raise OptionError(f"{where} {key!r} is neither an axis nor a recipe key. {nearest(key, known)}")
    if key == "models" and isinstance(value, dict):
        model = cast(dict[str, Any], value)
        named = model.get("weights", model.get("source"))
        return {"model": named}, {f"model.{name}": part for name, part in model.items()}
    return {_SHOWN.get(key, recipe_key.rpartition(".")[2]): value}, {recipe_key: value}


def _spread(keys: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Every combination of the lists among some keys, with words for what varies."""
    several = {key: cast(list[Any], value) for key, value in keys.items() if _varies(key, value)}
    for values in itertools.product(*several.values()):
        chosen = dict(zip(several, values, strict=True))
        yield [f"{key.rpartition('.')[2]} {_shown(value)}" for key, value in chosen.items()], {**keys, **chosen}


def _varies(key: str, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    items = cast(list[Any], value)
    return not key.endswith(_LISTS) or (bool(items) and isinstance(items[0], list))


def _shown(value: Any) -> str:
    return "+".join(map(str, cast(list[Any], value))) if isinstance(value, list) else str(value)


def _tuning(table: Any, where: str) -> Tuning:
    values = dict(_a_table(table, f"{where}: [tune]"))
    trials, seed = values.pop("trials", None), values.pop("seed", _TUNING_SEED)
    if type(trials) is not int or not 1 <= trials <= 10_000:
        raise OptionError(f"{where}: [tune] trials={trials}: expected a whole number of 1 or more, the same for all.")
    if type(seed) is not int or seed < 0:
        raise OptionError(f"{where}: [tune] seed={seed}: expected a whole number, 0 or more.")
    ranges = _ranges(values, f"{where}: [tune]")
    if not ranges:
        raise OptionError(f'{where}: [tune] names no key. Write "train.lr" = {{ low = 1e-4, high = 1e-1 }}.')
    return Tuning(trials, seed, ranges)


def _tuning_of(arm: Mapping[str, Any], tuning: Tuning | None, where: str) -> Tuning | None:
    """What an arm may try: the ranges of all, or its own for some keys; the number of trials is that of all."""
    if "tune" not in arm:
        return tuning
    own = _ranges(_a_table(arm["tune"], f"{where}, [arm.tune]"), f"{where}, [arm.tune]")
    for key in own:
        if tuning is None or key not in tuning.ranges:
            known = [] if tuning is None else list(tuning.ranges)
            raise OptionError(f"{where}, [arm.tune]: {key!r} is not tuned for all arms. {nearest(key, known)}")
    return tuning and Tuning(tuning.trials, tuning.seed, {**tuning.ranges, **own})


def _ranges(values: Mapping[str, Any], where: str) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for key, value in flat(values).items():
        if "." not in key:
            raise OptionError(f"{where}: {key!r} is no key of tuning. {nearest(key, ['trials', 'seed', 'train.lr'])}")
        if isinstance(value, list) and value:
            found[key] = Range(choices=tuple(cast(list[Any], value)))
            continue
        told = cast(dict[str, Any], value) if isinstance(value, dict) else {}
        low, high, log = told.get("low"), told.get("high"), told.get("log", True)
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (low, high))
        if not numbers or set(told) - {"low", "high", "log"} or type(log) is not bool:
            raise OptionError(f"{where} {key}: expected {{ low = ..., high = ..., log = true }} or a list of choices.")
        if not float(told["low"]) < float(told["high"]) or (log and told["low"] <= 0):
            raise OptionError(f"{where} {key}: expected low < high, and low > 0 where log = true.")
        found[key] = Range(float(told["low"]), float(told["high"]), log)
    return found


def _check_different(cells: Sequence[Cell], where: str) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.key in seen:
            raise OptionError(
                f"{where}: {seen[cell.key].title!r} and {cell.title!r} are the same recipe. Leave one of them out."
            )
        seen[cell.key] = cell


def _name_of(arm: Any, where: str) -> str:
    name = cast(dict[str, Any], arm).get("name") if isinstance(arm, dict) else None
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise OptionError(f'{where}: an [[arm]] has no name. Write name = "lora" below it.')
    return name


def _a_table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OptionError(f"{where}: expected a table, got {type(value).__name__}. Write its keys below its heading.")
    return cast(dict[str, Any], value)


def _a_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise OptionError(f"{where}: expected a list with something in it. Give at least one.")
    return cast(list[Any], value)
