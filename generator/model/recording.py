"""Decisions and their reasons: what `nipmesh explain` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from generator.manifest.kinds import format_duration
from generator.model.defaults import Decided
from generator.model.links import Layer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One setting, for `nipmesh explain`."""

    subject: str
    """`mesh`, `gateway`, a service, `service/package.Service/Method`, or `caller -> callee` before either."""
    setting: str
    value: str
    reason: str


@dataclass(slots=True)
class Recorder:
    """Takes decided values and remembers the reasons, in order."""

    decisions: list[Decision] = field(default_factory=list)

    def take(self, subject: str, setting: str, decided: Decided[T]) -> T:
        """Record and unwrap."""
        value = show(setting, decided.value)
        self.decisions.append(Decision(subject=subject, setting=setting, value=value, reason=decided.reason))
        return decided.value

    def pick(self, subject: str, setting: str, layer: Layer, path: str, default: Decided[T]) -> T:
        """Return what the user wrote at this path of keys when there is something, else the default."""
        written = layer.get(path)
        if written is None:
            return self.take(subject, setting, default)
        value: T = written.value
        return self.take(subject, setting, Decided(value=value, reason=from_line(written.position.line)))


def from_line(line: int) -> str:
    """Say where a value comes from."""
    return f"line {line} of the manifest"


def show(setting: str, value: object) -> str:
    """Return a value as `explain` prints it: durations with a unit, sets sorted, `-` for none."""
    if value is None or value in (frozenset(), ()):
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, frozenset):
        return ", ".join(sorted(str(getattr(item, "value", item)) for item in value))
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    if isinstance(value, int) and setting.endswith(("_ms", "_ms_max")):
        return format_duration(value)
    return str(value)
