"""Which methods the contract runs over, and options that bring out their differences."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from hypothesis import strategies as st
from torch import nn

import convpeft
from convpeft.adapters import method_class

METHODS = convpeft.list_methods()

# A norm-tuning adapter of a network without norms has nothing to hold; the head makes it one all the same.
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "lora": st.fixed_dictionaries(
        {"rank": st.integers(1, 12)},
        optional={"alpha": st.floats(0.25, 16), "rslora": st.booleans()},
    ),
    "bitfit": st.fixed_dictionaries({"create": st.booleans()}),
}
for name in ("cp", "loha", "tucker"):
    OPTIONS[name] = st.fixed_dictionaries({"rank": st.integers(1, 12)}, optional={"alpha": st.floats(0.25, 16)})
OPTIONS["dora"] = OPTIONS["lora-fa"] = OPTIONS["lora"]


def options_for(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """Strategy of a method's options; the defaults for a method without an entry."""
    return OPTIONS.get(method, st.just({}))


def methods_for(kind: str) -> tuple[str, ...]:
    """Methods that can sit on a layer of this kind."""
    return tuple(method for method in METHODS if kind in method_class(method).kinds)


def reference_of(method: str) -> ModuleType:
    """The numpy formula of a method."""
    return importlib.import_module(f"reference.{method.replace('-', '_')}")


def attach_anything(model: nn.Module, method: str, **arguments: Any) -> nn.Module:
    """Attach, and where the method's own layers do not exist in this network, train the head whole instead."""
    try:
        return convpeft.attach(model, method, **arguments)
    except convpeft.OptionError as error:
        if "finds no layer" not in str(error):
            raise
        return convpeft.attach(model, method, also_train=["head"], **arguments)
