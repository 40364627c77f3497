"""Turn contrasts and cells into the words and table cells of the page."""

from __future__ import annotations

from common.comparison import Cell
from common.contrasts import Contrast
from common.text import NOTHING, points
from convpeft.evaluation import describe_seed_difference
from convpeft.reporting import format_percent


def accuracy_cell(cell: Cell) -> str:
    """Mean, deviation and interval over the seeds."""
    if len(cell.runs) < 2:
        return format_percent(cell.mean)
    low, high = cell.interval
    return f"{format_percent(cell.mean)} ± {100 * (cell.deviation or 0):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference(found: Contrast) -> str:
    """The difference with its interval over the draws."""
    seeds = found.seeds
    if seeds.low is None or seeds.high is None:
        return points(seeds.mean)
    return f"{points(seeds.mean)} [{points(seeds.low)}, {points(seeds.high)}]"


def difference_cell(found: Contrast) -> str:
    """The same, marked where it is within noise."""
    return difference(found) + ("" if found.sign else " ○")


def over_images_cell(found: Contrast) -> str:
    """The interval over the test images."""
    return f"[{points(found.low)}, {points(found.high)}]"


def detectable_cell(found: Contrast) -> str:
    """What difference would have been found 8 times in 10, over the draws."""
    return NOTHING if found.seeds.detectable is None else f"{100 * found.seeds.detectable:.1f}"


def verdict(found: Contrast) -> str:
    """Whether a claim that the difference is above zero holds."""
    if found.sign > 0:
        return "held"
    return "not held: the other way round" if found.sign < 0 else "not held: within noise"


def relation(found: Contrast) -> str:
    """How accurate one side is beside the other, before the other's name."""
    return {1: "more accurate than", -1: "less accurate than", 0: "within noise of"}[found.sign]


def sentence(found: Contrast, *, a: str, b: str) -> str:
    """The difference in one plain sentence, and a second one where the test images leave it open."""
    told = describe_seed_difference(found.seeds, a=a, b=b)
    if not found.seeds.within_noise and not found.sign:
        facts = f"95 % interval over them {points(found.low)} to {points(found.high)}"
        told += f" Other test images might undo it ({facts})."
    return told
