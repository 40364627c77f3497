"""A recipe: everything a run needs and nothing that a run computes; TOML on disk."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convpeft.errors import OptionError, nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


_DEEPEST = 16  # tables and lists in each other


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(_Section):
    """The base network."""

    source: str
    weights: str | None = None  # a .safetensors or .pth file
    pretrained: bool = True
    in_channels: Annotated[int, Field(ge=1, le=4)] | None = None  # default: the network's own
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None  # pixels a side; default: the network's own
    head: str = "auto"
    keep_head: bool = False  # keep the pretrained classifier, for data with its very classes


class DataSection(_Section):
    """The images and how they are split."""

    source: str
    limit: Annotated[int, Field(ge=1)] | None = None  # training images at most
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # share of the training images; groups stay whole
    per_class: Annotated[int, Field(ge=1)] | None = None  # training images of each class
    val_per_class: Annotated[int, Field(ge=1)] | None = None  # validation images of each class; default: all
    fold: Annotated[int, Field(ge=0)] | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    augment: str = "none"
    skip_broken: bool = False


class MethodSection(_Section):
    """The method; what is not named here is an option of the method itself and is checked against its signature."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = "lora"
    include: list[str] | None = None
    exclude: list[str] | None = None
    norm: Literal["frozen", "adapt", "train"] | None = None
    rank_policy: Literal["clamp", "error", "skip"] = "clamp"
    also_train: list[str] = []

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.__pydantic_extra__ or {})


class TrainSection(_Section):
    """Optimisation. Rates are per step, decay is decoupled (AdamW) or in the gradient (SGD)."""

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Positive | None = None  # default: the method's own
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NotNegative = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of all steps
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    # beside it, lwf: learning without forgetting; l2-sp: decay of the trained weights towards the base's
    objective: Literal["cross-entropy", "lwf", "l2-sp"] = "cross-entropy"
    lwf_weight: NotNegative = 1.0
    lwf_temperature: Positive = 2.0
    l2sp_weight: NotNegative = 0.1
    clip: NotNegative = 5.0  # largest gradient norm, 0 for none
    accumulate: Annotated[int, Field(ge=1)] = 1  # batches a step
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better validation before stopping, 0 for never
    precision: Literal["no", "bf16", "fp16"] = "no"
    kernel: Literal["auto", "weight", "rebuilt", "side", "hybrid", "fused"] = "auto"  # how adapted layers are computed
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"  # how images lie in memory inside the network
    fold: bool = True  # let convolutions do the work of the frozen norms behind them where that saves time
    autotune: bool = False  # measure which kernel is the fastest for each layer; kernel is for those left over
    checkpointing: bool = False  # keep the inputs of blocks only and compute the rest again: less memory, more time
    compile: bool = False  # torch.compile for the steps of training
    workers: Annotated[int, Field(ge=0)] = 0
    prefix_cache: Literal["auto", "on", "off"] = "auto"  # compute what comes before the first trained layer once
    prefix_views: Annotated[int, Field(ge=1)] = 1  # augmented views of each image in that cache
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Recipe(_Section):
    """Model, data, method and training of one run."""

    model: ModelSection
    data: DataSection
    method: MethodSection = MethodSection()
    train: TrainSection = TrainSection()
    out: str = "runs/run"
    warm_start: str | None = None  # an adapter to go on from
    force: bool = False  # load it even onto another base than its own

    def to_toml(self) -> str:
        """The recipe as TOML; what is None is left out."""
        return "\n".join(_table((), self.model_dump(exclude_none=True))) + "\n"


def make_recipe(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Check values and return the recipe.

    Raises:
        OptionError: For an unknown key or a value out of range, naming the key and the nearest valid one.
    """
    _check_plain(values, where)
    try:
        return Recipe.model_validate(_widen(dict(values)))
    except ValidationError as error:
        raise OptionError(f"{where}: {_explain(error)}") from None


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file, unchecked, to be completed by the command line.

    Raises:
        OptionError: If the file is missing or is no TOML (a key given twice is none).
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}). Give a recipe, a TOML file.") from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path}: cannot be read as TOML ({' '.join(str(error).split())}).") from None


def set_keys(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments; values are TOML, and plain words are strings.

    Raises:
        OptionError: If an assignment has no `=` or a key is empty.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise OptionError(f"--set {assignment!r}: expected KEY=VALUE, for example train.epochs=5.")
        put_key(values, ".".join(path), parse_value(text.strip()))
    return values


def put_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at `section.key`.

    Raises:
        OptionError: If the section is a value.
    """
    *sections, name = key.split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise OptionError(f"{key}={value!r}: {section!r} is a value in the recipe, not a section.")
    target[name] = value


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none.

    >>> parse_value("3"), parse_value("1e-3"), parse_value("true"), parse_value("lora"), parse_value('["a"]')
    (3, 0.001, True, 'lora', ['a'])
    """
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    plain = len(values) == 1 and isinstance(values["value"], bool | int | float | str | list | dict)
    return values["value"] if plain else text  # a date is text here, and so is what runs on into other keys


def _widen(values: dict[str, Any]) -> dict[str, Any]:
    """Let an integer stand for a float, as people write `lr = 1`; nothing else is converted."""
    for section, cls in (("train", TrainSection), ("data", DataSection)):
        given = values.get(section)
        if isinstance(given, dict):
            floats = {name for name, field in cls.model_fields.items() if "float" in str(field.annotation)}
            values[section] = {
                key: float(value) if key in floats and type(value) is int and abs(value) < 2**53 else value
                for key, value in cast(dict[str, Any], given).items()
            }
    return values


def _check_plain(values: Mapping[str, Any], where: str) -> None:
    """Refuse what TOML has no place for and what no error could show: nests without end, numbers of many digits.

    Raises:
        OptionError: If there is one.
    """
    open_values: list[tuple[Any, tuple[str, ...]]] = [(values, ())]
    while open_values:
        value, keys = open_values.pop()
        if len(keys) > _DEEPEST:
            raise OptionError(f"{where}: tables or lists are nested more than {_DEEPEST} deep. Write it flat.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            place = ".".join(keys)
            raise OptionError(f"{where}: {place} is a whole number of more than 64 bits. Write a smaller one.")
        if isinstance(value, Mapping):
            inside = cast(Mapping[Any, Any], value).items()
            open_values += [(each, (*keys, _named(str(key)))) for key, each in inside]
        elif isinstance(value, list):
            open_values += [(each, (*keys, str(index))) for index, each in enumerate(cast(list[Any], value))]


def _explain(error: ValidationError) -> str:
    """The first problem on one line."""
    first = error.errors()[0]
    place = ".".join(_named(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_beside(tuple(first["loc"]))
        return f"{place} is not a key. {nearest(_named(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{place} is missing. Give it, for example {_EXAMPLES.get(place, place + '=...')}"
    if first["type"] in ("model_type", "dict_type"):
        return f"{place}={_short(first['input'])}: is a value, not a section. Write [{place}] and its keys below it."
    return f"{place}={_short(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _named(part: int | str) -> str:
    """A key as it is where it is a word, else in quotes and cut off."""
    text = str(part)
    return text if len(text) <= 40 and text.isprintable() else _short(text)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "..."
    return text if len(text) <= 80 else f"{text[:80]}..."


_EXAMPLES = {
    "model": "--model timm/resnet18.a1_in1k.",
    "model.source": "--model timm/resnet18.a1_in1k.",
    "data": "--data folder:PATH.",
    "data.source": "--data folder:PATH.",
}


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    if len(place) == 1:
        return list(Recipe.model_fields)
    section = Recipe.model_fields[str(place[0])].annotation
    return list(cast(type[BaseModel], section).model_fields)


def _table(place: tuple[str, ...], values: Mapping[str, Any]) -> list[str]:
    """A section and those inside it, such as the options of each of several methods; what is None is left out."""
    given = {key: value for key, value in values.items() if value is not None}
    lines = [f"{key} = {_toml(value)}" for key, value in given.items() if not isinstance(value, dict)]
    if place:
        lines = ["", f"[{'.'.join(place)}]", *lines]
    for key, value in given.items():
        if isinstance(value, dict):
            lines += _table((*place, key), cast(dict[str, Any], value))
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in cast(list[Any], value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
