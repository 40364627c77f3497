"""`convpeft combine`: sum adapters and say in what form and size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convpeft.adapter_file import WEIGHTS, find_adapter, read_adapter
from convpeft.console import say
from convpeft.errors import OptionError

_FORMS = {
    "lora": "low-rank factors",
    "full": "whole weights",
    "bitfit": "a bias alone",
    "head": "averaged heads",
    "norm": "equal norm statistics",
}


def combine_adapters(
    paths: Sequence[Path], out: Path, *, coefficients: Sequence[float] | None, weights: Path | None
) -> None:
    """Write the sum, and print how many layers have which form and how large the files are."""
    from convpeft.combining import combine

    if out.exists():
        raise OptionError(f"--out {out}: exists already. Give another name.")
    combine(paths, out=out, coefficients=coefficients, weights=weights)
    parts = Counter(part["part"].partition("@")[0] for part in read_adapter(out).config["parts"])
    forms = ", ".join(f"{_FORMS[label]} {count}" for label, count in sorted(parts.items()))
    given = ", ".join(_size(path) for path in paths)
    say(f"{out}: {forms}; {_size(out)} from {given}")


def _size(path: Path) -> str:
    size = (find_adapter(path) / WEIGHTS).stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
