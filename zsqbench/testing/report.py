"""What the checks of one method found, check by check."""

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from zsqbench.errors import one_line
from zsqbench.methods import Method

Outcome = Literal["ok", "advice", "FAILED", "not checked"]

CALLS = 3
"""The last calls of a traceback that are kept."""


@dataclass(frozen=True)
class Origin:
    """Where an error arose."""

    file: str | None
    """The file of the method's class; none where the error arose outside of it."""
    line: int | None
    """The last line of that file that was at work."""
    traceback: tuple[str, ...]
    """That line and the last of those that it called, and then the error."""


def origin_of(error: BaseException, method: Method) -> Origin:
    """Where an error arose, seen from the file of a method's class."""
    file = getattr(sys.modules.get(type(method).__module__), "__file__", None)
    calls = traceback.extract_tb(error.__traceback__)
    place = max((index for index, call in enumerate(calls) if call.filename == file), default=None)
    if place is None:
        return Origin(None, None, (*map(_told, calls[-CALLS:]), one_line(error)))
    own, *deeper = calls[place:]
    return Origin(own.filename, own.lineno, (*map(_told, (own, *deeper[-CALLS:])), one_line(error)))


def _told(call: traceback.FrameSummary) -> str:
    return f"{call.filename}, line {call.lineno}, in {call.name}: {call.line}"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one network."""

    check: str
    outcome: Outcome
    reason: str = ""
    origin: Origin | None = None
    """Where the error arose that made it fail, if one did."""


@dataclass
class Report:
    """Findings about a method. A strict one raises AssertionError, or what the method raised, at the first problem."""

    method: Method
    strict: bool = False
    findings: list[Finding] = field(default_factory=list)

    def require(
        self, check: str, condition: bool, complaint: str, where: str = "", cause: Exception | None = None
    ) -> bool:
        """Note whether a condition holds, and the error that it does not hold for, if there is one."""
        if condition:
            self.findings.append(Finding(check, "ok"))
            return True
        if self.strict:
            raise AssertionError(f"{self.method.kind} {self.method.name} {complaint}{where}") from cause
        origin = None if cause is None else origin_of(cause, self.method)
        self.findings.append(Finding(check, "FAILED", complaint + where, origin))
        return False

    def blame(self, check: str, error: Exception, where: str = "") -> None:
        """Note that a check failed for what was raised. A strict report raises it."""
        if self.strict:
            raise error
        self.require(check, False, f"raised {one_line(error)}", where, error)

    def advise(self, check: str, advice: str, where: str = "") -> None:
        """Note what is no mistake, and could be better."""
        self.findings.append(Finding(check, "advice", advice + where))

    def skip(self, check: str, reason: str) -> None:
        """Note that something was not checked, and why."""
        self.findings.append(Finding(check, "not checked", reason))

    def summary(self) -> list[Finding]:
        """One finding for each check: its first failure, or else advice, or what was not checked, or its success."""
        grouped: dict[str, list[Finding]] = {}
        for finding in self.findings:
            grouped.setdefault(finding.check, []).append(finding)
        return [_worst(found) for found in grouped.values()]

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return all(finding.outcome != "FAILED" for finding in self.findings)


def _worst(findings: list[Finding]) -> Finding:
    severity: Mapping[Outcome, int] = {"ok": 0, "not checked": 1, "advice": 2, "FAILED": 3}
    return max(findings, key=lambda finding: severity[finding.outcome])  # the first of the most severe
