"""Turn contrasts and cells into the words and table cells of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.comparison import Cell
from common.contrasts import Contrast
from convpeft.evaluation import describe_seed_difference
from convpeft.reporting import format_percent

NOTHING = "-"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def words(number: int) -> str:
    """A small number as a word."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def listed(parts: Iterable[object]) -> str:
    """A, B and C."""
    found = [str(part) for part in parts]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none"


def points(fraction: float) -> str:
    """A difference of two accuracies in points, with its sign."""
    return f"{100 * fraction:+.1f}"


def accuracy_cell(cell: Cell) -> str:
    """Mean, deviation and interval over the seeds."""
    if len(cell.runs) < 2:
        return format_percent(cell.mean)
    low, high = cell.interval
    return f"{format_percent(cell.mean)} ± {100 * (cell.deviation or 0):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference_cell(found: Contrast) -> str:
    """The difference with its interval over the draws, marked where it is within noise."""
    seeds = found.seeds
    if seeds.low is None or seeds.high is None:
        return f"{points(seeds.mean)} ○"
    return f"{points(seeds.mean)} [{points(seeds.low)}, {points(seeds.high)}]{'' if found.sign else ' ○'}"


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


def sentence(found: Contrast, *, a: str, b: str) -> str:
    """The difference in one plain sentence, and a second one where the test images leave it open."""
    told = describe_seed_difference(found.seeds, a=a, b=b)
    if not found.seeds.within_noise and not found.sign:
        facts = f"95 % interval over them {points(found.low)} to {points(found.high)}"
        told += f" Other test images might undo it ({facts})."
    return told


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
