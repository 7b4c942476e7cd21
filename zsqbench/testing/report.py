"""What the checks of one method found, check by check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from zsqbench.methods import Method

Outcome = Literal["ok", "FAILED", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one network."""

    check: str
    outcome: Outcome
    reason: str = ""


@dataclass
class Report:
    """Findings about a method. A strict one raises AssertionError, or what the method raised, at the first problem."""

    method: Method
    strict: bool = False
    findings: list[Finding] = field(default_factory=list)

    def require(self, check: str, condition: bool, complaint: str, where: str = "") -> bool:
        """Note whether a condition holds."""
        if not condition and self.strict:
            raise AssertionError(f"{self.method.kind} {self.method.name} {complaint}{where}")
        self.findings.append(Finding(check, "ok" if condition else "FAILED", "" if condition else complaint + where))
        return condition

    def skip(self, check: str, reason: str) -> None:
        """Note that something was not checked, and why."""
        self.findings.append(Finding(check, "not checked", reason))

    def summary(self) -> list[Finding]:
        """One finding for each check: the first failure; or that some part was not checked; or that all is well."""
        grouped: dict[str, list[Finding]] = {}
        for finding in self.findings:
            grouped.setdefault(finding.check, []).append(finding)
        return [_worst(found) for found in grouped.values()]

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return all(finding.outcome != "FAILED" for finding in self.findings)


def _worst(findings: list[Finding]) -> Finding:
    severity: Mapping[Outcome, int] = {"ok": 0, "not checked": 1, "FAILED": 2}
    return max(findings, key=lambda finding: severity[finding.outcome])  # the first of the most severe
