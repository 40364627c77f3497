"""GLoRA (Chavan et al. 2023, arXiv 2306.07967): W' = W + W A + B and b' = b + D b + E + W C, entry by entry."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def new_tensors(
    weight: np.ndarray, bias: np.ndarray | None, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Every entry of the weight on its own; C has one value for each input channel of the whole layer."""
    scale = 1.0 if options["alpha"] is None else options["alpha"] / options["rank"]

    def support(letter: str, row: int, column: int) -> float:
        form = options[letter]
        if form == "none":
            return 0.0
        if form == "lora":
            up, down = tensors[f"{letter}_up"][row], tensors[f"{letter}_down"][:, column]
            return scale * sum(float(x) * float(y) for x, y in zip(up, down, strict=True))
        return float(tensors[letter].ravel()[0 if form == "scalar" else row])

    outputs, inner = weight.shape[:2]
    new = np.zeros(weight.shape, dtype=np.float64)
    constant = np.zeros(outputs)
    for out in range(outputs):
        group = out // (outputs // options["groups"])
        for column, index in enumerate(np.ndindex(weight.shape[1:])):
            old = float(weight[(out, *index)])
            new[(out, *index)] = old + old * support("a", out, column) + support("b", out, column)
            constant[out] += old * support("c", group * inner + index[0], 0)
    if bias is None and options["c"] == "none" and options["e"] == "none":
        return new, None
    moved = np.zeros(outputs)
    for out in range(outputs):
        old = 0.0 if bias is None else float(bias[out])
        factor = support("d", out, 0) if bias is not None else 0.0
        moved[out] = old + factor * old + support("e", out, 0) + constant[out]
    return new, moved
