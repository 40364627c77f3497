"""Run what sits beside a layer or block rather than in its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from convpeft.adapters import Adapter, Module
from convpeft.errors import ModelError


def run_beside(
    run: Callable[[Tensor], Any], name: str, parts: Sequence[Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Run a layer or block, then what runs beside it, in order; in float32 at least.

    Raises:
        ModelError: Where the result would not be that of the composition.
    """
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        raise ModelError(f"a {name} with a branch was not called with one tensor. Exclude that layer or block.")
    given: Tensor = args[0]
    watched = not torch.compiler.is_compiling() and not given.is_inference()
    version = given._version if watched else None
    output: Any = run(given)
    if not isinstance(output, Tensor):
        raise ModelError(f"a {name} with a branch does not return one tensor. Exclude that layer or block.")
    if version is not None and given._version != version:
        raise ModelError(f"a {name} with a branch changes its input in place. Exclude that layer or block.")
    began: Module | None = None
    for part in parts:
        if part.runs_beside:
            began = part if isinstance(part, Adapter) else began
            wide = torch.promote_types(output.dtype, torch.float32)
            if torch.is_autocast_enabled(output.device.type):
                wide = output.dtype
            alone = part.site.kind != "linear" and given.ndim == len(part.site.kernel) + 1  # without a batch axis
            inputs = [each.to(wide).unsqueeze(0) if alone else each.to(wide) for each in (given, output)]
            added = part.beside(*inputs)
            output = (added.squeeze(0) if alone else added).to(output.dtype)
        elif began is not None and part.site.tensor == "weight":
            raise ModelError(
                f"method {part.method_name!r} acts on top of {began.method_name!r}, which is in training and "
                "normalises what comes before. Attach or activate them in the other order."
            )
    return output
