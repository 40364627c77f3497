"""peft's adapter_config.json: what of it changes outputs, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from convpeft.errors import AdapterFileError, one_line
from convpeft.interop.lycoris_names import multiplied_out, sides
from convpeft.sites import Site

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_KINDS = ("LORA", "LOHA", "LOKR")
# Options that would make outputs other than those of the factors alone, with the values that do not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
}
# Starts that leave the base as it is; others (pissa, olora, corda, loftq, lora_ga) train beside a changed base.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "lycoris")
_LARGEST = 2**31
_LITERAL = re.compile(r"\^?(?:\\?[\w-]|\\?\.)+\$?")


@dataclass(frozen=True)
class PeftOptions:
    """What a description says of every layer.

    Attributes:
        kind: LORA, LOHA or LOKR.
        rank: The rank of layers without one of their own.
        alpha: The same.
        ranks: Ranks by the ends of paths.
        alphas: The same.
        rslora: Whether the scale is alpha / sqrt(rank).
        dora: Whether LoRA is DoRA.
        factor: LoKr's decompose_factor.
        both: LoKr's decompose_both.
    """

    kind: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    factor: int
    both: bool

    def rank_of(self, path: str) -> int:
        """The rank of a layer."""
        return _matched(self.ranks, path, self.rank)

    def alpha_of(self, path: str) -> float:
        """The alpha of a layer."""
        return _matched(self.alphas, path, self.alpha)


def check_options(options: Mapping[str, Any], directory: Path) -> PeftOptions:
    """What of a description matters.

    Raises:
        AdapterFileError: If an option is of another type, or one that convpeft has no form for.
    """
    where = one_line(directory / CONFIG)
    kind = options.get("peft_type")
    if kind not in _KINDS:
        raise AdapterFileError(
            f"{where}: peft_type={one_line(repr(kind), 80)} is not read. Known: LORA (with use_dora too), LOHA, LOKR."
        )
    for key, neutral in _NEUTRAL.items():
        if not _is_in(options.get(key), neutral):
            raise AdapterFileError(
                f"{where}: {key}={one_line(repr(options[key]), 80)} has no form in convpeft. Merge the adapter in peft."
            )
    for key in ("init_lora_weights", "init_weights"):
        if not _is_in(options.get(key), _STARTS):
            raise AdapterFileError(
                f"{where}: {key}={one_line(repr(options[key]), 80)} may stand on a base that peft has changed. "
                "Save it in peft with path_initial_model_for_weight_conversion."
            )
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    numbers = {
        "r": options.get("r", 8),
        alpha: options.get(alpha, 8),
        "decompose_factor": options.get("decompose_factor", -1),
    }
    flags = {key: options.get(key) or False for key in ("use_rslora", "use_dora", "decompose_both")}
    tables = {key: options.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    checks = {
        **{
            key: _is_number(value, whole=key != alpha, least=-1 if key == "decompose_factor" else 0)
            for key, value in numbers.items()
        },
        **{key: isinstance(value, bool) for key, value in flags.items()},
        **{key: _is_table(value, whole=key == "rank_pattern") for key, value in tables.items()},
    }
    for key, right in checks.items():
        value = (numbers | flags | tables)[key]
        if not right:
            raise AdapterFileError(f"{where}: {key}={one_line(repr(value), 80)} is not what peft writes. Get it again.")
    return PeftOptions(
        kind,
        numbers["r"],
        numbers[alpha],
        _checked_patterns(tables["rank_pattern"], where),
        _checked_patterns(tables["alpha_pattern"], where),
        flags["use_rslora"] and kind == "LORA",
        flags["use_dora"] and kind == "LORA",
        numbers["decompose_factor"],
        flags["decompose_both"],
    )


def pattern_of(path: str) -> str:
    """A key of peft's patterns that means this path alone."""
    return f"^{re.escape(path)}"


def kronecker_plan(tensors: Mapping[str, Tensor], site: Site, *, both: bool) -> tuple[dict[str, Tensor], int]:
    """LoKr's factors whole or low-rank as peft makes them for the rank that is returned."""
    first, second = sides(tensors, site)
    widths = {tensors[key].shape[1] for key in ("up_first", "up_second") if key in tensors}
    if len(widths) == 1:
        (rank,) = widths
        low = {"first": both and 2 * rank < first, "second": 2 * rank < second}
        if all(low[word] == (f"up_{word}" in tensors) for word in low):
            return dict(tensors), rank
    return multiplied_out(tensors), max(first, second)


def _matched(table: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first key that peft would match: the whole path, or its end after a dot."""
    for key, value in table.items():
        bare = re.sub(r"\\(.)", r"\1", key.removeprefix("^").removesuffix("$"))
        if path == bare or (path.endswith(f".{bare}") and not key.startswith("^")):
            return value
    return default


def _checked_patterns(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The table, if its keys are paths; a regular expression from a file is not run."""
    for key in table:
        if not _LITERAL.fullmatch(key):
            raise AdapterFileError(
                f"{where}: the pattern {one_line(repr(key), 80)} is a regular expression, which is not run from a "
                "file. Write paths in rank_pattern and alpha_pattern."
            )
    return table


def _is_in(value: Any, known: tuple[Any, ...]) -> bool:
    return any(value is each or (type(value) is type(each) and value == each) for each in known)


def _is_number(value: Any, *, whole: bool, least: int = 0) -> bool:
    """Whether a number is one that peft takes, and none that overflows; only `least` below zero may be met."""
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return 0 < value < _LARGEST or least == value < 0


def _is_table(value: Any, *, whole: bool) -> bool:
    if not isinstance(value, dict):
        return False
    return all(_is_number(each, whole=whole) for each in cast(dict[str, Any], value).values())
