"""The page of the benchmark, written from the JSON file and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

TITLES = {"resnet18": "ResNet-18 at 112 pixels", "resnet20": "cifar-resnet/20 at 32 pixels"}
WAYS = {
    "mixed": "bank, one mixed batch",
    "one call an adapter": "bank, one call an adapter",
    "merged on demand": "a merged copy made for each call",
    "a model each": "a merged model for each adapter",
}


def write_page(content: dict[str, Any], path: Path) -> None:
    """Write the page; equal results give equal bytes."""
    path.write_text("\n\n".join(_blocks(content)) + "\n", encoding="utf-8")


def _blocks(content: dict[str, Any]) -> Iterator[str]:
    yield "# Many adapters on one backbone"
    if not content["rows"]:
        yield "Not measured yet. The command below takes some ten minutes of a quiet machine and writes this page."
        yield "```bash\npython benchmarks/bank/run.py\n```"
        return
    if content["trial"]:
        yield "This was a trial whether everything runs. The numbers mean nothing."
    yield (
        f"A batch of {content['batch']} images that ask for 1, 8 or 64 different adapters, LoRA of rank "
        f"{content['rank']} on every convolution and a head each; the adapters take turns. Images a second are the "
        f"median of {content['rounds']} rounds, the ways in turn, on {content['threads']} thread"
        f"{'' if content['threads'] == 1 else 's'} of a CPU ({content['machine']}), PyTorch {content['torch']}; in "
        "brackets the slowest and the fastest round. Memory is that of all weights held at once; a copy made for a "
        "call is counted once. All ways give the same outputs within 1e-5."
    )
    for net in dict.fromkeys(row["net"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["net"] == net]
        yield f"## {TITLES[net]}"
        counts = [f"{row['adapters']} adapter{'' if row['adapters'] == 1 else 's'}" for row in rows]
        lines = [
            f"| images a second | {' | '.join(counts)} |",
            f"| --- |{' ---: |' * len(rows)}",
            *(f"| {title} | {' | '.join(_rate(content, row, way) for row in rows)} |" for way, title in WAYS.items()),
        ]
        yield "\n".join(lines)
        lines = [
            f"| memory, MB | {' | '.join(counts)} |",
            f"| --- |{' ---: |' * len(rows)}",
            *(
                f"| {title} | {' | '.join(format(row['ways'][way]['bytes'] / 1e6, '.1f') for row in rows)} |"
                for way, title in WAYS.items()
            ),
        ]
        yield "\n".join(lines)
    yield "## How"
    yield (
        "```bash\npython benchmarks/bank/run.py\n```\n\n"
        "The networks have random weights, which changes neither time nor memory. Adapters are in memory before the "
        "first round, so that reading files is in no figure. With 64 adapters every image has its own: one call an "
        "adapter is then 64 batches of one. Not measured: GPUs, several threads at once, other methods."
    )


def _rate(content: dict[str, Any], row: dict[str, Any], way: str) -> str:
    found = row["ways"][way]
    slow, fast = (content["batch"] / edge(found["seconds"]) for edge in (max, min))
    return f"{found['images_per_s']:.0f} [{slow:.0f}, {fast:.0f}]"
