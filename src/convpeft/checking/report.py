"""What a check found: one line a claim, with a figure and a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from convpeft.errors import one_line

Status = Literal["pass", "fail", "skipped", "note"]
Examined = TypeVar("Examined")


class NotApplicableError(Exception):
    """A claim that says nothing about this network or method; the message is the reason."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one claim.

    Attributes:
        name: The claim in a few words.
        status: `pass`, `fail`, `skipped` (it does not apply) or `note` (information, no fault).
        figure: What was measured; None where nothing was.
        limit: The largest figure that passes; None for a note.
        unit: What the figure counts.
        meaning: What a pass says, in one line.
        detail: What went wrong and where, why it was skipped, or what to know.
    """

    name: str
    status: Status
    figure: float | None
    limit: float | None
    unit: str
    meaning: str
    detail: str = ""

    @property
    def measured(self) -> str:
        """Figure and unit for a reader."""
        return "-" if self.figure is None else f"{_number(self.figure)} {self.unit}"

    @property
    def allowed(self) -> str:
        """The limit for a reader."""
        return "-" if self.limit is None else _number(self.limit)

    @property
    def remark(self) -> str:
        """The detail where there is one, else the meaning."""
        return self.detail or self.meaning


@dataclass(frozen=True)
class CheckReport:
    """What `convpeft.check` found.

    Attributes:
        method: Methods of the adapters that were checked.
        layers: Layers or blocks that they sit on.
        shapes: Shapes of the inputs that were used.
        findings: One for each claim.
    """

    method: str
    layers: int
    shapes: tuple[tuple[int, ...], ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no claim failed."""
        return all(finding.status != "fail" for finding in self.findings)

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        number = {status: self._count(status) for status in ("pass", "fail", "skipped")}
        skipped = f", {number['skipped']} skipped" if number["skipped"] else ""
        where = f"{self.method} on {self.layers} layers"
        if self.passed:
            return f"{where}: all {number['pass']} checks that apply passed{skipped}. No fault was found."
        failed = ", ".join(finding.name for finding in self.findings if finding.status == "fail")
        count = f"{number['fail']} of {number['pass'] + number['fail']} checks failed{skipped}"
        return f"{where}: {count}: {failed}. Do not train on this network before that is mended."

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "passed": self.passed,
            "sentence": self.sentence,
            "method": self.method,
            "layers": self.layers,
            "inputs": [list(shape) for shape in self.shapes],
            "checks": [asdict(finding) for finding in self.findings],
        }

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name."""
        return {finding.name: finding for finding in self.findings}[name]

    def __str__(self) -> str:
        """A line for each claim, and the outcome."""
        lines = [
            f"{finding.status:<8}{finding.name:<24}{finding.measured:>18}  {finding.remark}"
            for finding in self.findings
        ]
        return "\n".join([*lines, self.sentence])

    def _count(self, status: str) -> int:
        return sum(finding.status == status for finding in self.findings)


@dataclass(frozen=True)
class Claim(Generic[Examined]):
    """One thing that has to hold, and how it is measured.

    Attributes:
        failure: What a figure above the limit says, where the measure gives no detail.
        measure: Returns the figure and a detail; raises NotApplicableError where the claim says nothing.
        limit: Largest figure that passes, or how to find it; None makes a finding above 0 a note.
    """

    name: str
    unit: str
    meaning: str
    failure: str
    measure: Callable[[Examined], tuple[float, str]]
    limit: float | Callable[[Examined], float] | None = 0

    def examine(self, subject: Examined) -> Finding:
        """Measure it; whatever the network raises on the way is a failure of the claim."""
        limit = self.limit(subject) if callable(self.limit) else self.limit
        try:
            figure, detail = self.measure(subject)
        except NotApplicableError as reason:
            return self.skipped(str(reason), limit)
        except MemoryError:
            raise
        except Exception as error:  # a stranger's forward may raise anything
            text = one_line(error)
            return Finding(
                self.name,
                "fail",
                None,
                limit,
                self.unit,
                self.meaning,
                f"{type(error).__name__}: {text or 'no message'}",
            )
        status: Status = "pass"
        if not figure <= (limit or 0):  # NaN is no pass
            status = "note" if limit is None else "fail"
            detail = detail or self.failure
        return Finding(self.name, status, figure, limit, self.unit, self.meaning, detail)

    def skipped(self, reason: str, limit: float | None = None) -> Finding:
        """The finding where it cannot be measured."""
        return Finding(self.name, "skipped", None, limit, self.unit, self.meaning, reason)


def listed(names: list[str], most: int = 3) -> str:
    """The first names, and how many there are beyond."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1e}"
