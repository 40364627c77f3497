"""Accuracy against operations and against parameters, one figure a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan import METHODS

COLOURS = dict(zip(METHODS, ("#1f5fa8", "#c0392b", "#2e8b57", "#8e5bb5"), strict=True))


def draw(lines: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Draw what was searched, and return the names of the figures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names: list[str] = []
    searched = [line for line in lines if line["kind"] == "search"]
    for network in sorted({line["network"] for line in searched}):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
        own = [line for line in searched if line["network"] == network]
        for axis, key in zip(axes, ("multiplications", "parameters"), strict=True):
            axis.axhline(100 * own[0]["before"]["accuracy"], color="#999999", linewidth=1)
            for method, colour in COLOURS.items():
                of_method = sorted(
                    (line for line in own if line["method"] == method), key=lambda each: each[key][1] / each[key][0]
                )
                shares = [100 * line[key][1] / line[key][0] for line in of_method]
                thin = [100 * line["thin"]["accuracy"] for line in of_method]
                axis.plot(shares, thin, "o--", color=colour, alpha=0.6, label=method if of_method else None)
                full = [line["restored"].get("full") for line in of_method]
                if full and all(full):
                    axis.plot(shares, [100 * each["accuracy"] for each in full], "s-", color=colour)
            axis.set_xlabel(f"{key} left, %")
        axes[0].set_ylabel("test accuracy, %")
        axes[0].legend(frameon=False, fontsize=8, title="dashed: thin; solid: restored", title_fontsize=8)
        name = network.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        names.append(name)
    return names
