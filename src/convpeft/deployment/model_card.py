"""A model card: what an adapter is for, how good it is, what it needs, and the lines that load it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from convpeft._version import __version__
from convpeft.deployment.card_facts import CardFacts, TestFigures
from convpeft.hub_address import HubAddress
from convpeft.models.source import is_import_path
from convpeft.reporting import format_interval, format_share, printable

CONFUSION = "confusion.png"
_MOST_CLASSES = 100  # in the table of classes
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#!|~&$])")


def model_card(facts: CardFacts, address: HubAddress) -> str:
    """The card as Markdown with the hub's front matter; every name in it is quoted or escaped.

    Args:
        facts: What there is to tell.
        address: Where the adapter can be loaded from, with its commit.
    """
    parts = [_front_matter(facts, address), *_introduction(facts), *_results(facts), *_use(facts, address)]
    return "\n".join([*parts, *_limits(facts), *_making(facts)]) + "\n"


def _front_matter(facts: CardFacts, address: HubAddress) -> str:
    """YAML; a JSON string is a YAML string, whatever is in it."""
    config = facts.file.config
    method, base = config["method"], _hub_base(facts)
    lines = ["---", "library_name: convpeft", "pipeline_tag: image-classification"]
    if base is not None:
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: adapter"]
    tags = dict.fromkeys(["convpeft", "peft", *method.split("+"), "image-classification", "cnn", "pytorch"])
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    if facts.figures is not None:
        lines += ["metrics:", "- accuracy", "- f1", "model-index:", f"- name: {json.dumps(address.repository)}"]
        name = json.dumps(printable(facts.recipe.data.source if facts.recipe else "the run's images"))
        lines += ["  results:", "  - task:", "      type: image-classification"]
        lines += ["    dataset:", f"      name: {name}", "      type: imagefolder", "      split: test", "    metrics:"]
        kinds = {"accuracy": "accuracy", "balanced accuracy": "balanced_accuracy", "macro F1": "f1"}
        for label, (value, _) in facts.figures.summary().items():
            lines += [f"    - type: {kinds[label]}", f"      value: {value:.6f}", f"      name: {label}"]
    return "\n".join([*lines, "---"])


def _introduction(facts: CardFacts) -> Iterator[str]:
    config = facts.file.config
    yield f"\n# {_plain(config['method'])} adapter for {_plain(_base_name(facts))}\n"
    classes: list[str] = config["classes"] or []
    count = config["num_classes"] or len(classes)
    what = f"images into {count} classes" if count else "images"
    where = f" on `{_code(facts.recipe.data.source)}`" if facts.recipe else ""
    yield (
        f"A small adapter, made with convpeft, by which a pretrained convolutional network classifies {what}. "
        f"The network itself is unchanged and not part of this repository; the adapter was trained{where}.\n"
    )
    if classes:
        more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
        yield f"Classes: {', '.join(_plain(name) for name in classes[:_MOST_CLASSES])}{more}.\n"


def _results(facts: CardFacts) -> Iterator[str]:
    yield "## Results\n"
    figures = facts.figures
    if figures is None:
        yield "No figures came with this adapter. Measure it on images of your own before you rely on it.\n"
        return
    yield f"On the {figures.n:,} images of the test split. In brackets: 95 % intervals.\n"
    if facts.duplicates:
        yield f"**{facts.duplicates:,} images occur in two splits, pixel for pixel:** the figures may be too good.\n"
    yield "| measure | result |\n|---|---:|"
    for label, (value, interval) in figures.summary().items():
        yield f"| {label} | {format_interval(value, interval)} |"
    yield f"\n![Confusion matrix: true classes in rows, predicted ones in columns]({CONFUSION})\n"
    yield from _by_class(figures)
    yield (
        "The intervals (Wilson's; for means over classes, from the posterior of the confusion matrix) tell of the "
        "chance in the choice of test images, not of that in training, nor of images from elsewhere.\n"
    )


def _by_class(figures: TestFigures) -> Iterator[str]:
    rows = figures.sensitivities()
    if len(rows) > _MOST_CLASSES:
        return
    yield "| class | test images | found |\n|---|---:|---:|"
    for name, n, (share, interval) in rows:
        yield f"| {_plain(name)} | {n:,} | {format_interval(share, interval)} |"
    yield ""


def _use(facts: CardFacts, address: HubAddress) -> Iterator[str]:
    source: dict[str, Any] = facts.file.config["model"] or {}
    built, weights = str(source.get("source", "")), source.get("weights")
    yield "## Use\n"
    yield "```bash\npip install 'convpeft[train]'\n```\n"
    if not built or is_import_path(built):
        how = f"with `{_code(built)}`" if built else "by code of your own"
        yield f"The base is built {how}; the adapter is refused on any other.\n"
        yield f'```python\nimport convpeft\n\nmodel = convpeft.load(base, "{address}").eval()\n```\n'
        return
    name = None if weights is None else PurePath(str(weights)).name
    keyword = "" if name is None else f", weights={json.dumps(name)}"
    flag = "" if name is None else f" --weights {shlex.quote(name)}"
    if name is not None:
        yield f"The base's weights come from the file `{_code(name)}`, which is not part of this repository.\n"
    yield f'```python\nimport convpeft\n\nmodel = convpeft.from_adapter("{address}"{keyword}).eval()\n```\n'
    if facts.file.config["classes"] and facts.file.config["preprocessing"]:
        yield f"```bash\nconvpeft predict {address} image.png{flag}\n```\n"


def _limits(facts: CardFacts) -> Iterator[str]:
    yield "## Intended use and limits\n"
    yield (
        "For images like those it was trained on: the same classes, the same kind of camera or scanner, the same "
        "preparation. Every image gets one of the classes, also one that shows none of them. It was not examined for "
        "other sources, for groups of people, or for any medical, legal or safety-critical use; measure it on your own "
        "images with `convpeft evaluate` first. The licence of the base and of the training images still holds.\n"
    )
    for note in facts.notes:
        yield f"- {_plain(note)}"
    if facts.notes:
        yield ""


def _making(facts: CardFacts) -> Iterator[str]:
    config, recipe = facts.file.config, facts.recipe
    rows: list[tuple[str, str]] = [("base", f"`{_code(_base_name(facts))}`")]
    rows.append(("base fingerprint", f"`{_code(config['base']['fingerprint'])}`"))
    rows.append(("method", f"{_plain(config['method'])}, norm policy {config['norm']}"))
    if facts.trainable is not None:
        trained, base = facts.trainable
        rows.append(("trained parameters", f"{trained:,} ({format_share(trained, base)} of the base's {base:,})"))
    if facts.images:
        rows.append(("images", ", ".join(f"{number:,} {_plain(split)}" for split, number in facts.images)))
    rows.append(("versions", _plain(", ".join(f"{k} {v}" for k, v in config["versions"].items()))))
    yield "## How it was made\n"
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows)
    yield "\nA base with another fingerprint is refused when the adapter is loaded.\n"
    if facts.command:
        yield from _block("bash", shlex.join(facts.command))
    if recipe is not None:
        yield "<details><summary>Recipe</summary>\n"
        yield from _block("toml", recipe.to_toml())
        yield "</details>\n"
    yield f"Card written by convpeft {__version__}."


def _block(language: str, text: str) -> Iterator[str]:
    """Text in a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}{language}\n{printable(text.strip(), keep=chr(10))}\n{fence}\n"


def _hub_base(facts: CardFacts) -> str | None:
    """The base's own repository on the hub, where the source says which: timm's weights with a tag."""
    source: dict[str, Any] = facts.file.config["model"] or {}
    name = str(source.get("source", ""))
    fetched = bool(source.get("pretrained")) and source.get("weights") is None
    return name if fetched and re.fullmatch(r"timm/[a-z0-9_]+\.[a-z0-9_]+", name) else None


def _base_name(facts: CardFacts) -> str:
    source: dict[str, Any] = facts.file.config["model"] or {}
    return str(source.get("source", "a network of your own"))


def _plain(text: str) -> str:
    """Words of a file as text: no markup, no line of its own."""
    return _MARKS.sub(r"\\\1", printable(" ".join(text.split())))


def _code(text: str) -> str:
    """The same inside backticks, and inside a table."""
    return printable(" ".join(text.split())).replace("`", "'").replace("|", "\\|")
