"""Run the steps of a training through torch.compile; what the compiler complains of becomes one line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from convpeft.errors import RunError, one_line


def compiled(model: nn.Module) -> nn.Module:
    """The model with the same parameters as the compiler runs it, in training only; nothing is compiled yet."""
    return torch.compile(model)  # type: ignore[no-any-return]


@contextmanager
def compiler_errors() -> Generator[None]:
    """Turn errors of the compiler in this block into one line.

    Raises:
        RunError: If the network cannot be compiled, or the machine has no compiler.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler, TritonMissing

    try:
        yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        inner = getattr(error, "inner_exception", error)
        if isinstance(inner, InvalidCxxCompiler | CppCompileError):
            why = "no C++ compiler that works was found"
            remedy = "Install one (gcc or clang), or set train.compile=false."
        elif isinstance(error, TritonMissing):
            why, remedy = "Triton is not installed", "Install triton, or set train.compile=false."
        else:
            lines = str(inner).strip().splitlines() or [type(inner).__name__]
            why, remedy = one_line(lines[0], 200).rstrip("."), "Set train.compile=false."
        raise RunError(f"train.compile=true: the network cannot be compiled ({why}). {remedy}") from None
