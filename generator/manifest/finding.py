"""A finding: one thing that is wrong in a manifest, where it stands, why it is wrong, and what to write instead."""

from __future__ import annotations

import difflib
import enum
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from generator.manifest.codes import CODES

EXCERPT_LENGTH_MAX = 160
"""Characters of a source line or a quoted value that are printed; more helps nobody."""
WORD_LENGTH_MAX = 100
"""Longer words are not compared with candidates: difflib is quadratic."""
PREFIX_LENGTH_MIN = 3
"""A shorter beginning of a word says too little."""
FINDINGS_MAX = 200
"""Findings that are kept; a file with more mistakes is not a manifest."""


class Severity(enum.Enum):
    """Errors stop everything, warnings deserve a change, notes say what a choice costs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Position:
    """A place in the manifest; both count from 1, columns in characters."""

    line: int
    column: int


START = Position(line=1, column=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding; `str(finding)` is what a user reads."""

    code: str
    severity: Severity
    path: str
    """The manifest as the user named it."""
    line: int
    column: int
    message: str
    cause: str
    fix: str
    source_line: str
    """The manifest's line that the finding points at; empty when there is none."""

    def __str__(self) -> str:
        head = f"{printable(self.path)}:{self.line}:{self.column}: {self.severity.value}[{self.code}] {self.message}"
        parts = [head]
        if self.source_line.strip():
            parts += excerpt(self.source_line, self.line, self.column)
        parts += [f"  cause: {self.cause}", f"  fix:   {self.fix}"]
        return "\n".join(parts)


def excerpt(source_line: str, line: int, column: int) -> list[str]:
    """Return the source line and a caret under the column; long lines are cut around it."""
    cut = max(0, column - 1 - EXCERPT_LENGTH_MAX // 2)
    before = printable(source_line[cut : column - 1])
    after = printable(source_line[column - 1 : cut + EXCERPT_LENGTH_MAX])
    gutter = f"{line:5} | "
    return [f"{gutter}{before}{after}", f"{'':5} | {' ' * display_width(before)}^"]


def printable(text: str) -> str:
    """Return the text with every character that could move the cursor or hide itself written as an escape."""
    return "".join(character if character.isprintable() else escape(character) for character in text)


def escape(character: str) -> str:
    """Write one character as its escape; a tab becomes a space, so that columns keep their place."""
    return " " if character == "\t" else character.encode("unicode_escape", "backslashreplace").decode("ascii")


def display_width(text: str) -> int:
    """Terminal cells of printable text; wide East Asian characters take two, combining ones none."""
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def quoted(value: str) -> str:
    """Return a user's value between backticks, safe to print and never long."""
    short = value if len(value) <= EXCERPT_LENGTH_MAX // 2 else value[: EXCERPT_LENGTH_MAX // 2] + "…"
    return f"`{printable(short)}`"


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that the user most probably meant; None when none is near."""
    known = sorted(set(candidates))
    longer = [candidate for candidate in known if candidate.lower().startswith(word.lower())]
    if len(word) >= PREFIX_LENGTH_MIN and len(longer) == 1:
        return longer[0]
    lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word[:WORD_LENGTH_MAX].lower(), lower, n=1, cutoff=0.6)
    return lower[matches[0]] if matches else None


def did_you_mean(word: str, candidates: Iterable[str], *, what: str) -> str:
    """Return the `fix` of a finding about an unknown word: the closest candidate, else all of them."""
    known = sorted(set(candidates))
    match = closest(word, known)
    if match is not None:
        return f"did you mean {quoted(match)}?"
    if not known:
        return f"there is no {what} yet"
    listed = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"use one of these: {listed}"


@dataclass(slots=True)
class Reporter:
    """Collects the findings of one manifest. The only mutable thing on the way from file to mesh."""

    path: str
    lines: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)

    def report(
        self, code: str, position: Position, message: str, *, cause: str, fix: str, severity: Severity = Severity.ERROR
    ) -> None:
        """Keep one finding; after `FINDINGS_MAX` they are dropped, for the list is long enough."""
        assert code in CODES, code
        if len(self.findings) >= FINDINGS_MAX:
            return
        line = self.lines[position.line - 1] if position.line <= len(self.lines) else ""
        self.findings.append(
            Finding(
                code=code,
                severity=severity,
                path=self.path,
                line=position.line,
                column=position.column,
                message=printable(message),
                cause=printable(cause),
                fix=printable(fix),
                source_line=line,
            )
        )

    def warn(self, code: str, position: Position, message: str, *, cause: str, fix: str) -> None:
        """Keep a warning."""
        self.report(code, position, message, cause=cause, fix=fix, severity=Severity.WARNING)

    def note(self, code: str, position: Position, message: str, *, cause: str, fix: str) -> None:
        """Keep a note."""
        self.report(code, position, message, cause=cause, fix=fix, severity=Severity.NOTE)

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def sorted(self) -> tuple[Finding, ...]:
        """All findings in the order of the file, without repetitions."""
        unique = dict.fromkeys(self.findings)
        return tuple(sorted(unique, key=lambda finding: (finding.line, finding.column, finding.code, finding.message)))
