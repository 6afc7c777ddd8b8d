"""What was checked, and what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from services.payment.domain.chain import Head

VIOLATIONS_MAX: Final = 1_000
"""Violations that are shown; all are counted. Whoever sees a thousand needs no more to know what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One rule that is broken: its name, the ids that are concerned, and what it means."""

    rule: str
    ids: tuple[str, ...]
    meaning: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.rule}: {', '.join(self.ids)}: {self.meaning}"


@dataclass(slots=True)
class Report:
    """Filled by the checks."""

    head: Head = field(default_factory=Head)
    checked: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0

    def violate(self, rule: str, meaning: str, *ids: str | int) -> None:
        """Add a violation."""
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(rule=rule, ids=tuple(str(one) for one in ids), meaning=meaning))

    def expect(self, holds: bool, rule: str, meaning: str, *ids: str | int) -> None:
        """Add a violation unless it `holds`."""
        if not holds:
            self.violate(rule, meaning, *ids)
