"""Write docs/results/deployment.md from the JSON files beside it: python benchmarks/deployment/page.py [FOLDER]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FOLDER = RESULTS / "deployment"
ALLOWED = 1.03  # merged over base


def page(folder: Path) -> str:
    """The page, with a section for each file that is there."""
    sections = ["# Deployment", ""]
    for name, section in (("latency", _latency), ("bytes", _bytes)):
        file = folder / f"{name}.json"
        if file.is_file():
            sections += section(json.loads(file.read_text(encoding="utf-8")))
    return "\n".join(sections)


def slower(facts: dict[str, Any]) -> list[str]:
    """The networks of which the merged file takes more than 3 % longer than the base's, in the median of the rounds."""
    return [row["network"] for row in facts["networks"] if row["ratio"][1] > ALLOWED]


def _latency(facts: dict[str, Any]) -> list[str]:
    rows = [
        f"| {row['network']} | {row['base_ms']:.2f} | {row['merged_ms']:.2f} "
        f"| {row['patchable_ms']:.2f} | {row['int8_ms']:.2f} "
        f"| {row['ratio'][1]:.3f} ({row['ratio'][0]:.3f} to {row['ratio'][2]:.3f}) "
        f"| {row['base_bytes']:,} | {row['merged_bytes']:,} | {row['int8_bytes']:,} |"
        for row in facts["networks"]
    ]
    slow = slower(facts)
    verdict = (
        f"Merged takes more than 3 % longer than the base on {', '.join(slow)}."
        if slow
        else "Merged takes at most 3 % longer than the base on every one."
    )
    trial = ["This was a trial whether everything runs. The numbers mean nothing.", ""] if facts["trial"] else []
    return [
        "## Latency and size in onnxruntime",
        "",
        *trial,
        f"One image, one thread, random weights, LoRA of rank 8 perturbed; {facts['rounds']} rounds in turn on "
        f"{facts['machine']}. The ratio is merged over base, median and quartiles over sets of sessions. {verdict} "
        "Base and merged have their norms folded; `--base` is the file that is patched, whose norms onnxruntime folds "
        "itself.",
        "",
        "| network | base ms | merged ms | `--base` ms | int8 ms | ratio | base bytes | merged bytes | int8 bytes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        f"Made by `python benchmarks/deployment/latency.py --rounds {facts['rounds']}`, torch {facts['torch']}, "
        f"onnxruntime {facts['onnxruntime']}.",
        "",
    ]


def _bytes(facts: dict[str, Any]) -> list[str]:
    rows = [
        f"| {row['network']} | {row['full']:,} | {row['adapter']:,} | {row['patch']:,} | {row['ratio']:.0f} |"
        for row in facts["rows"]
    ]
    return [
        "## Bytes to bring to a device",
        "",
        f"LoRA of rank {facts['rank']} on every convolution and a new head of {facts['classes']} classes, random "
        "weights. The full model is its merged weights; the patch is the adapter with the map that `convpeft patch` "
        "needs.",
        "",
        "| network | full model bytes | adapter bytes | patch bytes | full through patch |",
        "|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"Made by `python benchmarks/deployment/bytes.py`, torch {facts['torch']}.",
        "",
    ]


def write_page(out: Path = RESULTS, folder: Path = FOLDER) -> None:
    """Write the page into a folder, from the figures in docs/results/deployment or another."""
    (out / "deployment.md").write_text(page(folder), encoding="utf-8")


if __name__ == "__main__":
    write_page(*map(Path, sys.argv[1:2]))
