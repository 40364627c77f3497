"""The networks and layers of the comparison: drawn by the strategies of the contract tests, the same every time."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from contract.networks import Block, Geometry, Plan, geometries, plans  # noqa: E402

SEED = 0
CHUNK = 50


def draw(kind: str, number: int) -> list[Plan] | list[Geometry]:
    """The first `number` different networks ("nets") or single convolutions ("layers").

    They come in chunks, each with its own seed, so that a smaller number gives the beginning of a larger one.
    """
    strategy = plans() if kind == "nets" else geometries()
    found: dict[str, Any] = {}
    seed = SEED
    while len(found) < number:
        for value in _chunk(strategy, seed):
            found.setdefault(repr(value), value)
        seed += 1
    return list(found.values())[:number]


def _chunk(strategy: Any, seed: int) -> list[Any]:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.internal.conjecture import providers

    # Hypothesis mixes numbers that it reads in the sources of a program into its draws: any edit would give others.
    if hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants
    values: list[Any] = []

    @seeded(seed)
    @settings(
        max_examples=CHUNK,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(value: Any) -> None:
        values.append(value)

    keep()
    return values


def as_json(values: list[Any]) -> list[dict[str, Any]]:
    return json.loads(json.dumps([asdict(value) for value in values]))


def digest(drawn: dict[str, list[dict[str, Any]]]) -> str:
    """The beginning of the SHA-256 of all that was drawn."""
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]


def read_geometry(record: dict[str, Any]) -> Geometry:
    return Geometry(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})


def read_plan(record: dict[str, Any]) -> Plan:
    blocks = tuple(Block(**(block | {"geometry": read_geometry(block["geometry"])})) for block in record["blocks"])
    return Plan(**(record | {"blocks": blocks}))


def facts(drawn: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is in the draws: counted, so that a reader sees how hostile they are."""
    inside = {
        "nets": [block["geometry"] for plan in drawn["nets"] for block in plan["blocks"]],
        "layers": drawn["layers"],
    }
    counts: dict[str, Any] = {kind: _kinds(geometries) for kind, geometries in inside.items()}
    counts["nets with BatchNorm"] = sum(
        any(block["norm"] == "batch" for block in plan["blocks"]) for plan in drawn["nets"]
    )
    return counts


def _kinds(records: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "convolutions": len(records),
        "grouped": sum(record["groups"] > 1 for record in records),
        "dilated": sum(max(record["dilation"]) > 1 for record in records),
        "padded otherwise than with zeros": sum(record["padding_mode"] != "zeros" for record in records),
        "transposed": sum(record["transposed"] for record in records),
    }


if __name__ == "__main__":  # in a process of its own: what else is imported has no say
    path, nets, layers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    drawn = {"nets": as_json(draw("nets", nets)), "layers": as_json(draw("layers", layers))}
    path.write_text(json.dumps(drawn), encoding="utf-8")
