"""What the last full run found: as JSON, and as a table for the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convpeft.writing import write_file
from mutants.fault import Fault
from mutants.planting import ROOT, Outcome

RESULTS = ROOT / "docs" / "results" / "mutants.json"


def record_of(outcome: Outcome) -> dict[str, Any]:
    """What is kept of one fault; nothing in it depends on the machine or the time."""
    fault = outcome.fault
    return {
        "name": fault.name,
        "promises": list(fault.promises),
        "file": fault.file,
        "tests": list(fault.tests),
        "caught_by": outcome.caught_by,
        "digest": fault.digest,
    }


def read_records(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Records of a results file by the names of their faults; none where there is no file."""
    if not path.is_file():
        return {}
    return {record["name"]: record for record in json.loads(path.read_text(encoding="utf-8"))["faults"]}


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records sorted by the file and name of their faults, whole or not at all."""
    ordered = sorted(records, key=lambda record: (record["file"], record["name"]))
    caught = sum(record["caught_by"] is not None for record in ordered)
    content = {"planted": len(ordered), "caught": caught, "faults": ordered}
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def is_of(record: Mapping[str, Any] | None, fault: Fault) -> bool:
    """Whether a record was made of this very fault."""
    return record is not None and record["digest"] == fault.digest


def markdown_table(path: Path = RESULTS) -> str:
    """The faults and the tests that caught them, as a Markdown table."""
    lines = ["| Planted fault | Attacks | File | Caught by |", "| --- | --- | --- | --- |"]
    for record in read_records(path).values():
        file, _, test = (record["caught_by"] or "").partition("::")
        caught = f"`{test.partition('[')[0]}` in `{file}`" if test else "**nothing**"
        lines.append(f"| {record['name']} | {', '.join(record['promises'])} | `{record['file']}` | {caught} |")
    return "\n".join(lines) + "\n"
