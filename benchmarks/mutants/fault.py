"""One planted fault: a plausible mistake, where it is made, and the tests meant to catch it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Fault:
    """A mistake that a developer could make.

    Attributes:
        name: The mistake in a few words, unique.
        promises: Ids of the promises it would break.
        file: The file it is made in, below src/convpeft.
        before: The right text, which occurs exactly once in the file.
        after: The wrong text.
        tests: Ids of the pytest tests meant to catch it; the first to fail is the one that has.
    """

    name: str
    promises: tuple[str, ...]
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What tells this fault from any other, and from itself after a change."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def plant(self, source: str) -> str:
        """The file's text with the mistake in it.

        Raises:
            ValueError: If the right text does not occur exactly once, or nothing changes.
        """
        found = source.count(self.before)
        if found != 1:
            raise ValueError(f"{self.name!r}: its text occurs {found} times in {self.file}, expected once.")
        return source.replace(self.before, self.after)

    def names(self, test: str) -> bool:
        """Whether a test, with its parameters or without, is one of those meant to catch it."""
        return test in self.tests or test.partition("[")[0] in self.tests
