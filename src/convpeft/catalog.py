"""Names and options of the built-in methods, read from their files without running them (no torch)."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CatalogEntry:
    """What a method's file says at a glance."""

    name: str
    summary: str
    options: tuple[str, ...]


def read_catalog() -> tuple[CatalogEntry, ...]:
    """One entry a method, sorted by name.

    >>> [entry.options for entry in read_catalog() if entry.name == "cp"]
    [('rank', 'alpha', 'learned_scale')]
    """
    entries: list[CatalogEntry] = []
    for file in sorted((Path(__file__).parent / "methods").glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (name := _registered_name(node)) is not None:
                summary = (ast.get_docstring(node) or "").split("\n", 1)[0]
                entries.append(CatalogEntry(name, summary, _options(node)))
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _registered_name(node: ast.ClassDef) -> str | None:
    for keyword in node.keywords:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return None


def _options(node: ast.ClassDef) -> tuple[str, ...]:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return tuple(argument.arg for argument in member.args.kwonlyargs)
    return ()
