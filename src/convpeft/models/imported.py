"""A network from the user's own Python function, the one place where a source string leads to an import."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from convpeft.errors import ModelError
from convpeft.models.network import Network
from convpeft.models.preprocessing import Preprocessing
from convpeft.models.stems import set_input_channels


def imported_network(source: str) -> Network:
    """Return the network that "package.module:function" builds.

    The module is imported, which runs its code: pass only strings that the user gave, never one that was read
    from a file. The function is called with ``num_classes`` and ``in_channels`` if it takes them by these names
    and they were asked for; it returns an ``nn.Module``, for example with its own weights in place.

    Raises:
        ModelError: If the module cannot be imported or has no such function.
    """
    module_name, _, function_name = source.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # a module may raise anything while it is imported
        raise ModelError(
            f"{source}: importing {module_name} failed ({_one_line(error)}); "
            "install it or put its folder on PYTHONPATH."
        ) from error
    if not callable(function):
        raise ModelError(f"{source}: {module_name} has no function {function_name!r}; check the name after the colon.")

    def build(num_classes: int | None, in_channels: int | None) -> nn.Module:
        return _call(function, source, num_classes=num_classes, in_channels=in_channels)

    return Network(build=build, preprocessing=Preprocessing())


def _call(function: Callable[..., Any], source: str, *, num_classes: int | None, in_channels: int | None) -> nn.Module:
    arguments: dict[str, int] = {}
    if num_classes is not None:
        if not _takes(function, "num_classes"):
            raise ModelError(
                f"{source}: takes no num_classes (asked for {num_classes}); add the argument or leave it out."
            )
        arguments["num_classes"] = num_classes
    if in_channels is not None and _takes(function, "in_channels"):
        arguments["in_channels"] = in_channels
    try:
        model = function(**arguments)
    except Exception as error:  # the user's function may raise anything
        raise ModelError(f"{source}: calling it failed ({_one_line(error)}); make it return an nn.Module.") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{source}: expected it to return an nn.Module, got {type(model).__name__}.")
    if in_channels is not None and "in_channels" not in arguments:
        set_input_channels(model, in_channels, source=source)
    return model


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
