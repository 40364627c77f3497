"""Write the pages that have their source elsewhere: the README, the methods, the public names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import convpeft
from convpeft.adapters import MethodInfo, Module, load_methods, method_info
from convpeft.models.resnet50_sites import resnet50_sites
from convpeft.planning import trainable_on
from convpeft.reporting.canvas import figure_bytes
from convpeft.reporting.method_map import draw_map

COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder, and put all in order; called by mkdocs."""
    for path, content in _pages():
        files.append(File.generated(config, path, content=content))
    paths = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = [
        {"Home": "index.md"},
        "concepts.md",
        "speed.md",
        "deployment.md",
        "patching.md",
        "bank.md",
        "ecosystem.md",
        "comparing.md",
        "robustness.md",
        "compression.md",
        "retention.md",
        "promises.md",
        "migration.md",
        {"Methods": _folder("methods", paths)},
        "reference.md",
        {"Results": _folder("results", paths)},
        "contributing.md",
        "changelog.md",
    ]
    return files


def _folder(name: str, paths: list[str]) -> list[str]:
    """Return the pages of a folder, its index first."""
    return sorted((path for path in paths if path.startswith(f"{name}/")), key=lambda path: "/index." not in path)


def _copied_page(name: str) -> str:
    """Read a page of the repository's root, with its links as they are inside the site."""
    text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    return re.sub(r"\]\((\w+\.md)\)", lambda link: f"]({COPIED.get(link[1], link[1])})", text)


def _pages() -> Iterator[tuple[str, str | bytes]]:
    yield from ((page, _copied_page(name)) for name, page in COPIED.items())
    methods = load_methods()
    records = [method_info(name) for name in sorted(methods)]
    sizes = {record.name: trainable_on(resnet50_sites(), record.name) for record in records}
    yield "methods/index.md", _method_table(records, sizes)
    yield "methods/map.png", figure_bytes(draw_map(methods, sizes))
    for record in records:
        cls = methods[record.name]
        yield f"methods/{record.name}.md", _method_page(record, cls)
    yield "reference.md", _reference()


def _method_table(records: list[MethodInfo], sizes: dict[str, int]) -> str:
    rows = [
        f"| [`{record.name}`]({record.name}.md) | {record.summary} | {record.mergeable} | {record.norm} "
        f"| {sizes[record.name]:,} |"
        for record in records
    ]
    head = ["| method | what it does | merges | norm policy | on ResNet-50 |", "|---|---|---|---|---:|"]
    introduction = (
        "The last column is the number of parameters that a method trains on ResNet-50 with its own head, at default "
        "options. "
        "Every method is one file in `convpeft/methods`. Its page is made from that file. "
        "What the columns mean is in [Concepts](../concepts.md)."
    )
    picture = "![What each method changes, how much it trains, and whether it merges](map.png)"
    return "\n".join(["# Methods", "", introduction, "", picture, "", *head, *rows, ""])


def _method_page(record: MethodInfo, cls: type[Module]) -> str:
    identifier = f"{cls.__module__}.{cls.__qualname__}"
    options = "".join(f" --set method.{option.name}={option.default}" for option in record.options[:1])
    facts = {
        "Merges": record.mergeable,
        "Norm policies": ", ".join(f"`{policy}`" for policy in record.norm_policies) + " (the first is the default)",
        "Sites": ", ".join(f"`{word}`" for word in record.default_sites) or "none",
        "Refuses": "; ".join(f"{kind}: {cls.refused[kind]}" for kind in cls.refused if kind not in cls.kinds),
        "Learning rate": f"{record.learning_rate:g}",
        "Paper": record.paper or "none",
    }
    return "\n".join(
        [
            f"# {record.name}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            "```bash",
            f"convpeft train --model MODEL --data DATA --method {record.name}{options} --out RUN",
            "```",
            "",
            f"::: {identifier}",
            "",
        ]
    )


def _reference() -> str:
    """One entry a public name, at the place where it is defined."""
    entries: list[str] = []
    for name in sorted(getattr(convpeft, "__all__", ())):
        thing = getattr(convpeft, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            entries += [f"::: {thing.__module__}.{thing.__qualname__}", ""]
    introduction = "Everything below can be imported from `convpeft` itself; the rest of the package is private."
    return "\n".join(["# Reference", "", introduction, "", *entries])
