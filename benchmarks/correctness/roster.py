"""Who takes part: the libraries, their distributions and methods, without importing any of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import convpeft

SHARED = ("lora", "dora", "loha", "lokr", "full")
LIBRARIES: dict[str, dict[str, Any]] = {
    "convpeft": {"distribution": "convpeft", "title": "convpeft", "networks": True},
    "peft": {
        "distribution": "peft",
        "title": "peft",
        "networks": True,
        "methods": ("lora", "lora-norms", "dora", "loha", "lokr"),
    },
    "lycoris": {
        "distribution": "lycoris_lora",
        "title": "LyCORIS",
        "networks": True,
        "methods": ("lora", "dora", "loha", "loha-one", "lokr", "lokr-one", "full"),
    },
    "loralib": {"distribution": "loralib", "title": "loralib", "networks": True, "methods": ("lora",)},
    "keras": {"distribution": "keras", "title": "Keras", "networks": False, "methods": ("lora",)},
}
LABELS = {
    ("peft", "lora"): "LoRA",
    ("peft", "lora-norms"): "LoRA, norms in `modules_to_save`",
    ("peft", "dora"): "DoRA",
    ("peft", "loha"): "LoHa",
    ("peft", "lokr"): "LoKr",
    ("lycoris", "lora"): "LoRA (LoCon)",
    ("lycoris", "dora"): "DoRA (`dora_wd`)",
    ("lycoris", "loha"): "LoHa",
    ("lycoris", "loha-one"): "LoHa, alpha = rank",
    ("lycoris", "lokr"): "LoKr",
    ("lycoris", "lokr-one"): "LoKr, alpha = rank",
    ("lycoris", "full"): "full",
    ("loralib", "lora"): "LoRA",
    ("keras", "lora"): "LoRA",
    **{("convpeft", name): label for name, label in zip(SHARED, ("LoRA", "DoRA", "LoHa", "LoKr", "full"), strict=True)},
}


def methods_of(library: str) -> tuple[str, ...]:
    """convpeft takes part with all that are registered, those that the others have too first."""
    if library != "convpeft":
        return LIBRARIES[library]["methods"]
    return (*SHARED, *(name for name in convpeft.list_methods() if name not in SHARED))


def number_of(library: str, method: str, nets: int) -> int:
    """How many of the networks and layers: those of convpeft's methods that no rival has get a third, to save time."""
    return nets if library != "convpeft" or method in SHARED else -(-nets // 3)


def merges(library: str, method: str) -> bool:
    """Whether the method is a map of weights, which can be merged; those of the rivals all are."""
    if library != "convpeft":
        return True
    from contract.methods_under_test import MAPS, is_branch

    return method in MAPS and not is_branch(method, {})


def version_of(library: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return version(LIBRARIES[library]["distribution"])
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Everything that numbers may depend on."""
    names = [LIBRARIES[library]["distribution"] for library in LIBRARIES]
    return {name: version(name) for name in (*names, "torch", "numpy", "hypothesis") if _there(name)}


def _there(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
