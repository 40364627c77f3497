"""Check, on a user's own network, that adapters keep their promises and that nothing is lost silently."""

from convpeft.checking.report import CheckReport, Finding
from convpeft.checking.running import check

__all__ = ["CheckReport", "Finding", "check"]
