"""Collects what is said of one setting for each of the methods that it was written for, and reports it once."""

from __future__ import annotations

from dataclasses import dataclass, field

from generator.manifest.finding import Position, Reporter, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Why a setting is nothing for a method."""

    code: str
    message: str
    cause: str
    fix: str
    severity: Severity = Severity.ERROR


@dataclass(slots=True)
class Verdicts:
    """By setting and place: what each method makes of it. A setting is wrong when it fits none of them."""

    found: dict[tuple[str, Position], list[Misfit | None]] = field(default_factory=dict)

    def add(self, subject: str, position: Position, verdict: Misfit | None) -> None:
        """Keep one; None: it fits."""
        self.found.setdefault((subject, position), []).append(verdict)

    def report(self, reporter: Reporter) -> None:
        """Report each setting that fits nothing, with the first reason."""
        for (_, position), verdicts in self.found.items():
            first = next((each for each in verdicts if each is not None), None)
            if first is not None and None not in verdicts:
                report(first, position, reporter)


@dataclass(slots=True)
class Once:
    """Reports what is wrong wherever it is true, once for each place."""

    reporter: Reporter
    seen: set[tuple[str, Position]] = field(default_factory=set)

    def report(self, misfit: Misfit, position: Position) -> None:
        """Report it, unless this place has had it."""
        if (misfit.code, position) not in self.seen:
            self.seen.add((misfit.code, position))
            report(misfit, position, self.reporter)


def report(misfit: Misfit, position: Position, reporter: Reporter) -> None:
    """Make it a finding."""
    reporter.report(misfit.code, position, misfit.message, cause=misfit.cause, fix=misfit.fix, severity=misfit.severity)
