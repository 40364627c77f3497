"""What was measured so far: one file of lines a method in the work folder, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

KINDS = ("nets", "layers")
Item = tuple[str, int]


class Lines:
    """The lines of one method of one library; those of other draws or another version are passed over."""

    def __init__(self, work: Path, library: str, method: str, version: str, drawn: dict[str, list[Any]]) -> None:
        self._path = work / f"{library}-{method}.jsonl"
        self._version = version
        self._marks = {(kind, number): _mark(value) for kind in KINDS for number, value in enumerate(drawn[kind])}

    def read(self) -> dict[Item, dict[str, Any]]:
        """Every line that counts, by kind and number."""
        found: dict[Item, dict[str, Any]] = {}
        if self._path.is_file():
            for text in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # the run was stopped while it wrote
                    continue
                item = (line["kind"], line["number"])
                if line["version"] == self._version and line["of"] == self._marks.get(item):
                    found[item] = line
        return found

    def missing(self, *, whole_networks: bool) -> list[Item]:
        kinds = KINDS if whole_networks else KINDS[1:]
        known = self.read()
        return [item for item in self._marks if item[0] in kinds and item not in known]

    def add(self, line: dict[str, Any]) -> None:
        item = (line["kind"], line["number"])
        text = json.dumps(line | {"version": self._version, "of": self._marks[item]})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def _mark(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
