"""Which methods the contract runs over, and options that bring out their differences."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convpeft
from contract import options_a, options_b, options_c
from convpeft.adapters import Branch, complete_options, method_class

METHODS = convpeft.list_methods()

# A norm-tuning adapter of a network without norms has nothing to hold; the head makes it one all the same.
# For what is promised of every network, but not on a thousand; and for what is no statement about every geometry.
AT_MOST_200 = settings(max_examples=min(200, settings().max_examples))
FEWER = settings(max_examples=max(4, settings().max_examples // 5))

RANK = {"rank": st.integers(1, 12)}
SCALE = {"alpha": st.floats(0.25, 16), "learned_scale": st.booleans()}
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "lora": st.fixed_dictionaries(
        RANK,
        optional=SCALE
        | {
            "rslora": st.booleans(),
            "init": st.sampled_from(["zero", "pissa"]),
            "plus_ratio": st.sampled_from([1.0, 16.0]),
        },
    ),
    "lora-fa": st.fixed_dictionaries(RANK, optional=SCALE | {"rslora": st.booleans()}),
    "dora": st.fixed_dictionaries(RANK, optional={"alpha": SCALE["alpha"], "rslora": st.booleans()}),
    "bitfit": st.fixed_dictionaries({"create": st.booleans()}, optional={"learned_scale": st.booleans()}),
}
for name in ("cp", "loha", "tucker"):
    OPTIONS[name] = st.fixed_dictionaries(RANK, optional=SCALE)
for name in ("norm-tuning", "residual-parallel"):
    OPTIONS[name] = st.fixed_dictionaries({}, optional={"learned_scale": st.booleans()})
OPTIONS |= options_a.OPTIONS | options_b.OPTIONS | options_c.OPTIONS
OPTIONS["colora"] = st.fixed_dictionaries(
    {},
    optional={
        "order": st.sampled_from(["pointwise-first", "depthwise-first"]),
        "bias": st.sampled_from(["none", "output"]),
        "merge_every": st.sampled_from(["never", "epoch"]),
    },
)
OPTIONS["mlae"] = st.fixed_dictionaries(RANK, optional=SCALE | {"dropout": st.sampled_from([0.0, 0.5])})
OPTIONS["adalora"] = st.fixed_dictionaries(RANK | {"target_rank": st.just(1.0)}, optional=SCALE)


def is_branch(method: str, options: dict[str, Any]) -> bool:
    """Whether the method is no map of weights with these options."""
    cls = method_class(method)
    return issubclass(cls.form(**complete_options(cls, options)), Branch)


# Methods that are a map of weights with some of their options.
MAPS = tuple(method for method in METHODS if method_class(method).mergeable != "never")


def holds_branch(model: nn.Module) -> bool:
    """Whether something attached to the model is no map of weights."""
    return any(isinstance(module, Branch) for module in model.modules())


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


def train_steps(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """What a training loop does, in train mode, with every hook."""
    model.train()
    convpeft.plan_training(model, epochs=1, steps_per_epoch=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).float().square().mean()
        extra = convpeft.penalty(model)
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        convpeft.after_step(model, optimizer)
