"""How a page was made: the block of lines that every page of figures ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Provenance:
    """What another person needs to make the figures of a page again, and to judge them.

    Attributes:
        command: What makes the figures, as it is typed.
        page_command: What makes the page from the figures.
        base: Digest of the base's weights, by the base's name.
        data: Digest of the images, by the name of a split or source.
        trials: How often each arm was allowed to try; 0 where nothing was tuned.
        ranges: What was tried, by the tuned key.
        seeds: Seeds of each arm.
        effects: Sentences that compare accuracies, each with effect and interval.
        detectable: What differences could have been found; "" where no accuracies are compared.
        versions: Versions that the figures depend on.
    """

    command: str
    page_command: str = ""
    base: Mapping[str, str] = field(default_factory=dict[str, str])
    data: Mapping[str, str] = field(default_factory=dict[str, str])
    trials: int = 0
    ranges: Mapping[str, str] = field(default_factory=dict[str, str])
    seeds: tuple[int, ...] = ()
    effects: tuple[str, ...] = ()
    detectable: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def provenance_lines(made: Provenance) -> list[str]:
    """The facts, a line each, without any mark-up.

    >>> provenance_lines(Provenance("convpeft compare grid.toml", seeds=(0, 1)))
    ['Learning rates and other options were not tuned.', 'Seeds: 0, 1.']
    """
    lines: list[str] = []
    if made.trials:
        tried = "; ".join(f"{key} {text}" for key, text in made.ranges.items())
        lines.append(
            f"Tuned on the validation split alone, {made.trials} trials an arm and setting: {tried}."
            if tried
            else f"Tuned on the validation split alone, {made.trials} trials an arm and setting."
        )
    else:
        lines.append("Learning rates and other options were not tuned.")
    if made.seeds:
        lines.append(f"Seeds: {', '.join(map(str, made.seeds))}.")
    lines += [f"Base {name}: {digest}" for name, digest in made.base.items()]
    lines += [f"Data {name}: {digest}" for name, digest in made.data.items()]
    lines += made.effects
    if made.detectable:
        lines.append(made.detectable)
    if made.versions:
        lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in made.versions.items()) + ".")
    return lines


def provenance_markdown(made: Provenance) -> str:
    """The block as Markdown, with its heading and the commands to be copied."""
    commands = "\n".join(filter(None, (made.command, made.page_command)))
    lines = "\n".join(f"- {line}" for line in provenance_lines(made))
    return f"## How it was made\n\n```bash\n{commands}\n```\n\n{lines}"
