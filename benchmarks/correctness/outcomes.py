"""What came of a measurement, in words that mean the same for every library."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RIGHT, WRONG, REFUSED, CRASHED, ABSENT = "right", "wrong", "refused", "crashed", "not offered"
TOLERANCE = 1e-4  # relative, on float32 outputs; some hundred roundings of 6e-8 stay far below


class NotOfferedError(Exception):
    """The library has no such feature, or not for such a layer; nothing to hold against it, nothing to count for it."""


class WrongError(Exception):
    """Something was done without an error, and is not what it should be."""


def outcome_of(measure: Callable[[], dict[str, Any]], package: str) -> dict[str, Any]:
    """Run a measurement; an error becomes an outcome."""
    try:
        return measure()
    except NotOfferedError:
        return {"outcome": ABSENT}
    except WrongError as error:
        return {"outcome": WRONG, "why": str(error)}
    except Exception as error:
        return error_outcome(error, package)


def error_outcome(error: BaseException, package: str) -> dict[str, Any]:
    """A refusal is a `raise` (or an assertion with a message) of the library itself that says a sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    innermost = frames[-1]
    own = f"/{package}/" in Path(innermost.filename).as_posix()
    line = linecache.getline(innermost.filename, innermost.lineno or 0).strip()
    message = re.sub(r"/\S*/", "", " ".join(str(error).split()))  # no folder of this machine
    deliberate = own and line.startswith(("raise ", "raise\n", "assert ")) and len(message.split()) >= 3
    inside = [frame for frame in frames if f"/{package}/" in Path(frame.filename).as_posix()] or [innermost]
    place = Path(inside[-1].filename)
    return {
        "outcome": REFUSED if deliberate else CRASHED,
        "error": type(error).__name__,
        "where": f"{place.parent.name}/{place.name}, {inside[-1].name}",
        "message": message[:200],
    }


def compared(found: Tensor, expected: Tensor) -> dict[str, Any]:
    """Right or silently wrong, with the error."""
    if found.shape != expected.shape:
        return {"outcome": WRONG, "relative": None, "why": f"shape {tuple(found.shape)} for {tuple(expected.shape)}"}
    error = relative(found, expected)
    return {"outcome": RIGHT if error <= TOLERANCE else WRONG, "relative": error}


def relative(found: Tensor, expected: Tensor) -> float:
    """max|a - b| / max|b|; infinite where something is not a number."""
    found, expected = found.detach().double(), expected.detach().double()
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
    return error if torch.isfinite(torch.tensor(error)) else float("inf")
