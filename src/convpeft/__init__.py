"""Parameter-efficient fine-tuning of convolutional networks, exact on every convolution.

Every public name is loaded when it is first used, so that `convpeft --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convpeft._version import __version__

if TYPE_CHECKING:
    from convpeft.adapters import Adapter, Branch, MethodInfo, list_methods, method_info
    from convpeft.attachment import attach, detach, disabled, old_head, set_active
    from convpeft.autotuning import autotune
    from convpeft.bank import Bank
    from convpeft.checking import CheckReport, check
    from convpeft.combining import combine
    from convpeft.compression import Compression, compress
    from convpeft.costing import LayerCost, StepCost, TrainingCost, training_cost
    from convpeft.counting import Count, after_step, count, param_groups, penalty, plan_training, trainable_parameters
    from convpeft.errors import AdapterFileError, ConvpeftError, DataError, ModelError, OptionError, RunError
    from convpeft.interpolating import interpolated
    from convpeft.kernels import KernelPlan
    from convpeft.merging import merge, merged
    from convpeft.models import from_adapter, load_compressed, load_model
    from convpeft.selection import select
    from convpeft.sites import Site
    from convpeft.speed import kernels_of, set_kernels
    from convpeft.storage import load, save
    from convpeft.training import train

_WHERE = {
    "adapters": ("Adapter", "Branch", "MethodInfo", "list_methods", "method_info"),
    "attachment": ("attach", "detach", "disabled", "old_head", "set_active"),
    "autotuning": ("autotune",),
    "bank": ("Bank",),
    "checking": ("CheckReport", "check"),
    "combining": ("combine",),
    "compression": ("Compression", "compress"),
    "costing": ("LayerCost", "StepCost", "TrainingCost", "training_cost"),
    "counting": ("Count", "after_step", "count", "param_groups", "penalty", "plan_training", "trainable_parameters"),
    "errors": ("AdapterFileError", "ConvpeftError", "DataError", "ModelError", "OptionError", "RunError"),
    "interpolating": ("interpolated",),
    "kernels": ("KernelPlan",),
    "merging": ("merge", "merged"),
    "models": ("from_adapter", "load_compressed", "load_model"),
    "selection": ("select",),
    "sites": ("Site",),
    "speed": ("kernels_of", "set_kernels"),
    "storage": ("load", "save"),
    "training": ("train",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterFileError",
    "Bank",
    "Branch",
    "CheckReport",
    "Compression",
    "ConvpeftError",
    "Count",
    "DataError",
    "KernelPlan",
    "LayerCost",
    "MethodInfo",
    "ModelError",
    "OptionError",
    "RunError",
    "Site",
    "StepCost",
    "TrainingCost",
    "__version__",
    "after_step",
    "attach",
    "autotune",
    "check",
    "combine",
    "compress",
    "count",
    "detach",
    "disabled",
    "from_adapter",
    "interpolated",
    "kernels_of",
    "list_methods",
    "load",
    "load_compressed",
    "load_model",
    "merge",
    "merged",
    "method_info",
    "old_head",
    "param_groups",
    "penalty",
    "plan_training",
    "save",
    "select",
    "set_active",
    "set_kernels",
    "train",
    "trainable_parameters",
    "training_cost",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'convpeft' has no attribute {name!r}")
    return getattr(importlib.import_module(f"convpeft.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
