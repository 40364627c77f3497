"""What the tests of each promise came to: lines of single tests, summed up into one JSON file."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "docs" / "results" / "promises.json"
FORMS = ("full", "fast")


@dataclass(frozen=True)
class Promise:
    """One row of the page."""

    id: str
    group: str
    title: str
    statement: str
    passes: str


def promises() -> list[Promise]:
    """All promises, in the order of promises.toml."""
    table = tomllib.loads((HERE / "promises.toml").read_text(encoding="utf-8"))
    return [
        Promise(key, name, group["title"], *value)
        for name, group in table.items()
        for key, value in group.items()
        if key != "title"
    ]


def source_digest() -> str:
    """The first digits of a digest over every file of the package."""
    total = hashlib.sha256()
    for path in sorted((ROOT / "src" / "convpeft").rglob("*.py")):
        total.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each test; a line that a kill has cut off is passed over."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            found[line["test"]] = line
    return found


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Outcomes by test function, and figures of all the tests of one promise."""
    tests: dict[str, dict[str, int]] = {}
    figures: dict[str, list[Any]] = {}
    for line in sorted(lines, key=lambda each: each["test"]):
        outcomes = tests.setdefault(line["test"].partition("[")[0], {"passed": 0, "failed": 0, "skipped": 0})
        outcomes[line["outcome"]] += 1
        for name, (kind, value) in line["figures"].items():
            before = figures.get(name, [kind, value if kind == "largest" else 0])[1]
            figures[name] = [kind, max(before, value) if kind == "largest" else before + value]
    return {
        "tests": tests,
        "figures": {name: value for name, (_, value) in sorted(figures.items())},
        "source": sorted({line["source"] for line in lines}),
    }


def update(form: str, lines: dict[str, dict[str, Any]], ids: list[str], versions: dict[str, str]) -> None:
    """Put what has been measured of these promises into the committed results; the rest stays."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for each in ids:
        own = [line for line in lines.values() if each in line["promises"]]
        if own:
            kept.setdefault(each, {})[form] = summarise(own) | {"versions": versions}
    order = [promise.id for promise in promises()]
    kept = {key: kept[key] for key in sorted(kept, key=order.index)}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
