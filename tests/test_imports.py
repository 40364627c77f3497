"""Imports point one way, the core stays light, and asking for help does not load torch."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "convpeft"
ROOT = "convpeft"

# Lowest first: a part imports from its own layer and from lower ones.
LAYERS = (
    {"errors", "_version", "_torchvision", "catalog", "hub_address", "writing"},
    {"adapter_description"},
    {
        "adapters",
        "blocks",
        "branching",
        "canonical",
        "composing",
        "convolving",
        "decompositions",
        "fingerprints",
        "folding",
        "forwards",
        "frozen_norm",
        "heads",
        "injection",
        "kernels",
        "low_rank",
        "mixing",
        "norms",
        "routing",
        "selection",
        "sharing",
        "sites",
        "slots",
        "sparing",
        "tracing",
        "trials",
    },
    {"methods"},
    {"planning", "adapter_file"},
    {"attachment"},
    {
        "autotuning",
        "bank",
        "checking",
        "costing",
        "counting",
        "interpolating",
        "merging",
        "speed",
        "storage",
        "summing",
    },
    {"data", "models"},
    {"combining", "compression", "deployment", "evaluation", "interop", "reporting", "training"},
    {"comparing"},
    {"console"},
    {"commands", "demo"},
    {"bare", "cli", "web"},
    {"__init__", "__main__"},
)
LEVELS = {part: level for level, layer in enumerate(LAYERS) for part in layer}
# A method knows little, and only its name is known of it: the registry finds it.
METHOD_IMPORTS = {"adapters", "convolving", "errors", "low_rank", "sites"}
# `also_train` means the method `full` on the layers it names.
KNOWN_METHODS = {("convpeft.planning", "convpeft.methods.full")}
# Within one layer: numbers and pages must not depend on how a run was made.
FORBIDDEN = {("evaluation", "training"), ("reporting", "training"), ("compression", "training")}
HEAVY = {"accelerate", "matplotlib", "pydantic", "timm", "torchmetrics", "torchvision"}


def imported_modules(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the dotted names that a module imports, anywhere in it; the last word may be no module."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, by their full dotted names."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imported_modules(tree, module_name(path), is_package=path.name == "__init__.py"):
        if name.split(".")[0] == ROOT:
            while name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def module_name(path: Path) -> str:
    parts = [ROOT, *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the part that a module belongs to: the file or folder right under the package."""
    return module.split(".")[1] if "." in module else "__init__"


FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


def refusal(importer: str, imported: str) -> str | None:
    """Say which rule an import breaks, or None when it keeps them all."""
    source, target = part_of(importer), part_of(imported)
    if source == target:
        return None
    if source == "methods" and target not in METHOD_IMPORTS:
        return f"a method imports only {sorted(METHOD_IMPORTS)}"
    if target == "methods" and (importer, imported) not in KNOWN_METHODS:
        return "methods are found by the registry, not imported"
    if LEVELS[target] > LEVELS[source]:
        return f"{target} stands above {source}"
    if (source, target) in FORBIDDEN:
        return f"{source} must not depend on {target}"
    return None


def test_every_module_has_a_layer():
    homeless = sorted({part_of(module) for module in MODULES} - LEVELS.keys())
    assert not homeless, f"add to LAYERS, each in the layer where it belongs: {homeless}"


def test_imports_point_one_way():
    broken = [
        f"{module} imports {imported}: {reason}"
        for module, path in MODULES.items()
        for imported in sorted(own_imports(path))
        if (reason := refusal(module, imported))
    ]
    assert not broken, "\n".join(broken)


def test_imports_make_no_circle():
    # A package runs its own __init__ first, so what that imports back from the package is no circle.
    graph = {
        module: {other for other in own_imports(path) if not module.startswith(f"{other}.")} - {module}
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("convpeft.errors", "convpeft.adapters"),
        ("convpeft.attachment", "convpeft.merging"),
        ("convpeft.models.zoo", "convpeft.training.loop"),
        ("convpeft.evaluation.metrics", "convpeft.training"),
        ("convpeft.methods.lora", "convpeft.attachment"),
        ("convpeft.storage", "convpeft.methods.lora"),
        ("convpeft.kernels.weight", "convpeft"),
    ],
)
def test_an_import_against_the_direction_is_refused(importer: str, imported: str):
    assert refusal(importer, imported)


def test_relative_and_absolute_imports_are_read_alike():
    relative = ast.parse("from .loop import run\nfrom .. import errors")
    absolute = ast.parse("from convpeft.training.loop import run\nfrom convpeft import errors")
    for module, is_package in (("convpeft.training", True), ("convpeft.training.recipe", False)):
        found = [set(imported_modules(tree, module, is_package=is_package)) for tree in (relative, absolute)]
        assert found[0] == found[1]


def modules_loaded_by(*arguments: str) -> set[str]:
    """Run Python with these arguments and return the top-level packages that it imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_importing_convpeft_does_not_import_torch():
    assert not modules_loaded_by("-c", "import convpeft") & {"torch", *HEAVY}


def test_the_core_stays_light():
    core = "attach, count, detach, disabled, load, merge, merged, param_groups, save, select, set_active"
    code = f"from convpeft import {core}, list_methods; list_methods()"
    loaded = modules_loaded_by("-c", code)
    assert "torch" in loaded
    assert not loaded & HEAVY


if (SOURCE / "__main__.py").exists():

    def test_help_does_not_import_torch():
        assert not modules_loaded_by("-m", "convpeft", "--help") & {"torch", *HEAVY}
