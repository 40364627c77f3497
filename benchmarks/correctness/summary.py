"""Counts of outcomes from the lines, and the smallest layer that fails."""

from __future__ import annotations

from collections import Counter
from typing import Any

from measures import rank_of
from outcomes import ABSENT, CRASHED, REFUSED, RIGHT, WRONG

NET_MEASURES = (
    "fresh",
    "merge",
    "batch norm",
    "saved",
    "wrong base, one ulp",
    "wrong base, other weights",
)
LAYER_MEASURES = ("fresh", "merge", "formula", "gradient", "batch norm")


def row_of(lines: dict[tuple[str, int], dict[str, Any]], drawn: dict[str, list[Any]]) -> dict[str, Any]:
    """All that the results say of one method of one library."""
    nets = [line for (kind, _), line in sorted(lines.items()) if kind == "nets"]
    layers = [line for (kind, _), line in sorted(lines.items()) if kind == "layers"]
    found = [line["saved"] for line in nets if "flips" in line.get("saved", {})]
    return {
        "nets": {measure: _count(nets, measure) for measure in NET_MEASURES} | _restored(nets),
        "layers": {measure: _count(layers, measure) for measure in LAYER_MEASURES},
        "convolutions": sum(line.get("convolutions", 0) for line in nets),
        "offered": sum(line.get("offered", 0) for line in nets),
        "flips": sum(each["flips"] for each in found if each["predictions"]),
        "predictions": sum(each["predictions"] for each in found),
        "fresh and equal in every bit": sum(bool(line.get("fresh", {}).get("bits")) for line in nets),
        "saved and equal in every bit": sum(bool(each["bits"]) for each in found),
        "largest error where right": _largest([*nets, *layers]),
        "worst": _worst(layers, drawn["layers"]),
        "errors": _errors([*nets, *layers]),
    }


def _count(lines: list[dict[str, Any]], measure: str) -> dict[str, int]:
    counted = Counter(_outcome(line, measure) for line in lines if _outcome(line, measure))
    return {name: counted[name] for name in (RIGHT, WRONG, REFUSED, CRASHED, ABSENT) if counted[name]}


def _outcome(line: dict[str, Any], measure: str) -> str:
    """A hang or a dead process is a crash of every measurement of that network or layer."""
    if "lost" in line:
        return CRASHED
    return line.get(measure, {}).get("outcome", "")


def _restored(nets: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Switched off and taken out, apart, and apart for networks that have a BatchNorm."""
    counts: dict[str, dict[str, int]] = {}
    for name, keep in (("with", True), ("without", False)):
        chosen = [line for line in nets if (line.get("batch norm", {}).get("outcome") != ABSENT) == keep]
        for way in ("disabled", "unloaded"):
            counted = Counter(_restored_outcome(line, way) for line in chosen)
            counts[f"{way}, {name} BatchNorm"] = {
                outcome: counted[outcome] for outcome in (RIGHT, WRONG, REFUSED, CRASHED, ABSENT) if counted[outcome]
            }
    return counts


def _restored_outcome(line: dict[str, Any], way: str) -> str:
    if "lost" in line:
        return CRASHED
    answer = line["restored"]
    if "tensors" not in answer:
        return answer["outcome"]
    if way == "disabled":
        return {None: ABSENT, True: RIGHT, False: WRONG}[answer["disabled"]]
    return RIGHT if answer["tensors"] and answer["outputs"] else WRONG


def _largest(lines: list[dict[str, Any]]) -> float:
    errors = [
        line[measure]["relative"]
        for line in lines
        for measure in ("merge", "formula")
        if line.get(measure, {}).get("outcome") == RIGHT
    ]
    return float(f"{max(errors, default=0.0):.3g}")


def _worst(layers: list[dict[str, Any]], geometries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The failing layer with the fewest special arguments, then the fewest numbers."""
    failing = [
        (_size(geometries[line["number"]]), line["number"], measure, line[measure]["relative"])
        for line in layers
        for measure in ("formula", "merge")
        if line.get(measure, {}).get("outcome") == WRONG
    ]
    if not failing:
        return None
    _, number, measure, error = min(failing, key=lambda each: (each[0], each[1]))
    geometry = geometries[number]
    return {
        "layer": _code(geometry),
        "input": [2, geometry["in_channels"], *geometry["space"]],
        "number": number,
        "rank": rank_of(number),
        "measure": measure,
        "relative": None if error is None or error == float("inf") else float(f"{error:.3g}"),
    }


def _size(geometry: dict[str, Any]) -> tuple[int, int]:
    special = (
        (geometry["padding_mode"] != "zeros")
        + (max(geometry["dilation"]) > 1)
        + (geometry["groups"] > 1)
        + (max(geometry["stride"]) > 1)
        + (len(set(geometry["kernel"])) > 1)
        + geometry["transposed"]
    )
    numbers = geometry["out_channels"] * geometry["in_channels"] // geometry["groups"]
    for size in geometry["kernel"]:
        numbers *= size
    return special, numbers


def _code(geometry: dict[str, Any]) -> str:
    """One line of torch."""
    dims = len(geometry["kernel"])
    words = [str(geometry["in_channels"]), str(geometry["out_channels"]), _short(geometry["kernel"])]
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": True, "padding_mode": "zeros"}
    if geometry["transposed"]:
        defaults = {"output_padding": 0} | {key: defaults[key] for key in defaults if key != "padding_mode"}
    for name, default in defaults.items():
        value = _short(geometry[name])
        if value != repr(default):
            words.append(f"{name}={value}")
    return f"torch.nn.Conv{'Transpose' * geometry['transposed']}{dims}d({', '.join(words)})"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return repr(value[0]) if len(set(value)) == 1 else repr(tuple(value))
    return repr(value)


def _errors(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was refused and what crashed: by place, with one message as an example."""
    counted: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], str] = {}
    for line in lines:
        if "lost" in line:
            counted[(CRASHED, line["lost"], "")] += 1
            continue
        keys = set()
        for answer in line.values():
            if isinstance(answer, dict) and answer.get("outcome") in (REFUSED, CRASHED):
                key = (answer["outcome"], answer["error"], answer["where"])
                keys.add(key)
                examples.setdefault(key, answer["message"])
        counted.update(keys)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"outcome": key[0], "error": key[1], "where": key[2], "count": number, "example": examples.get(key, "")}
        for key, number in ordered[:6]
    ]
