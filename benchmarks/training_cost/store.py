"""What was measured so far, a line of JSON each, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Store:
    """Rows by table and key; those of other settings or versions are passed over."""

    def __init__(self, work: Path, settings: dict[str, Any], source: str) -> None:
        """`source` is a digest of convpeft, on which its own rows depend and those of the others do not."""
        work.mkdir(parents=True, exist_ok=True)
        self._source = source
        self._path = work / "rows.jsonl"
        self._mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def forget(self) -> None:
        """Measure everything anew."""
        self._path.unlink(missing_ok=True)

    def read(self, table: str) -> dict[str, dict[str, Any]]:
        """Rows of a table by key, the newest of each."""
        found: dict[str, dict[str, Any]] = {}
        if not self._path.is_file():
            return found
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the run was stopped while it wrote
                continue
            current = line["mark"] == self._mark and line["source"] in (None, self._source)
            if current and line["table"] == table:
                found[line["key"]] = line["row"]
        return found

    def add(self, table: str, key: str, row: dict[str, Any], *, own: bool) -> None:
        """Note a row; `own` where convpeft made it."""
        line = {"mark": self._mark, "source": self._source if own else None, "table": table, "key": key, "row": row}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
