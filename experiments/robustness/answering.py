"""Say of one trained run which corrupted images it classifies right, and keep the answers beside the comparison."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from corrupting import Corrupted
from images import BASE

from convpeft.comparing.store import append_result, read_results
from convpeft.evaluation import predict_logits
from convpeft.evaluation.inference import load_classifier

MEASURED = "measured.jsonl"
Row = Mapping[str, Any]


def measure_all(rows: Iterable[Row], corrupted: Corrupted, *, folder: Path, out: Path) -> None:
    """Measure every run of a comparison that is not measured yet."""
    known = read_results(out / MEASURED)
    for row in rows:
        if row["key"] in known:
            continue
        line = measure(row, corrupted, folder=folder, out=out)
        append_result(out / MEASURED, line)
        share = line["right"] / line["answers"]
        print(f"measured {row['arm']}, seed {row['seed']}: corrupted {share:.1%}, {line['seconds']:.0f} s", flush=True)


def measure(row: Row, corrupted: Corrupted, *, folder: Path, out: Path) -> dict[str, Any]:
    """One run's answers, packed, in the order of the corrupted images."""
    began = time.perf_counter()
    weights = folder / BASE if "weights" in row["recipe"]["model"] else None
    classifier = load_classifier(out / "runs" / row["key"], weights=weights)
    correct = predict_logits(classifier.model, corrupted.batches(classifier.preprocessing)).correct
    return {
        "key": row["key"],
        "answers": len(correct),
        "right": int(correct.sum()),
        "packed": base64.b64encode(np.packbits(correct).tobytes()).decode(),
        "seconds": round(time.perf_counter() - began, 3),
    }
