"""What the results hold beside what every comparison has: methods, and answers under corruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doing import Outcome
from plan import Transfer

Row = Mapping[str, Any]


def facts_of(transfer: Transfer, outcome: Outcome, equal: Row | None) -> dict[str, Any]:
    """Where base and images are from, which test images the answers belong to, and how equal equal settings are."""
    corrupted = outcome.corrupted
    return {
        "weights": outcome.weights,
        "images": transfer.images.partition(":")[0],
        "pool": transfer.train_per_class,
        "equal": equal,
        "corrupted": None
        if corrupted is None
        else {
            "origin": corrupted.origin,
            "digest": corrupted.digest,
            "names": list(dict.fromkeys(name for name, _ in corrupted.cells)),
            "parts": transfer.parts,
            "labels": corrupted.labels.tolist(),
        },
    }


def run_facts(row: Row, measured: Mapping[str, Row]) -> dict[str, Any]:
    """The method of a run, how its images were augmented, and its answers."""
    method, answers = row["recipe"]["method"], measured.get(row["key"], {})
    return {
        "method": {key: value for key, value in method.items() if key not in ("rank_policy", "also_train")},
        "augment": row["recipe"]["data"]["augment"],
        "corrupted": answers.get("packed", ""),
        "measuring_seconds": answers.get("seconds", 0.0),
    }


def told(row: Row, measured: Mapping[str, Row]) -> str:
    """The figures of a single run in a line, as the results have them."""
    facts = run_facts(row, measured)
    return (
        f"{row['arm']}, seed {row['seed']}, rate {row['lr']:g}: test_accuracy {row['test']['accuracy']}, "
        f"right {row['test']['right'][:24]}..., corrupted {facts['corrupted'][:24]}..."
    )
