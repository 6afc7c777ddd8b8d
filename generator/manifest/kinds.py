"""The kinds of value a manifest has. Each loads a node, describes itself in JSON Schema, and says itself in a word."""

from __future__ import annotations

import abc
import re
import shlex
from dataclasses import dataclass
from typing import Any

from generator.manifest.finding import Reporter, did_you_mean, quoted
from generator.manifest.nodes import Node, ScalarKind, ScalarNode, SequenceNode
from generator.manifest.values import Located

MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
"""Units of a duration."""
INTEGER_DIGITS_MAX = 12
"""Longer numbers are out of any range here, and Python refuses to read very long ones."""
COMMAND_LENGTH_MAX = 4_096
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h)")
_DURATION_SPACED = re.compile(r"([0-9]{1,9})\s*([a-zA-Z]+)")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Broken:
    """What a kind gives back after it reported a finding."""


BROKEN = Broken()


class Kind(abc.ABC):
    """One kind of value."""

    word: str
    """What it is, for messages: `a duration like 2s`."""
    placeholder: Any
    """Stands in for a required value that is broken."""

    @abc.abstractmethod
    def load(self, node: Node, reporter: Reporter, where: str) -> Any:
        """Return the typed value; BROKEN after a finding. `where` is the path of keys, e.g. `services.orders.replicas`."""

    @abc.abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema (draft 2020-12) of this kind."""


def wrong_type(node: Node, reporter: Reporter, where: str, word: str, fix: str | None = None) -> Broken:
    """Report NM103 or, for the words that readers disagree about, NM104."""
    if isinstance(node, ScalarNode) and node.kind is ScalarKind.AMBIGUOUS:
        cause = f"some YAML readers take {quoted(node.text)} for a boolean, others for text; {where} is {word}"
        fix = fix or f'write "{node.text}" in quotes if it is meant as text'
        reporter.report("NM104", node.position, f"ambiguous word {quoted(node.text)}", cause=cause, fix=fix)
        return BROKEN
    found = f"{node.kind.value} ({quoted(node.text)})" if isinstance(node, ScalarNode) else shape(node)
    if isinstance(node, ScalarNode) and node.kind is ScalarKind.NULL:
        found = "nothing"
    message = f"{where} must be {word}"
    reporter.report("NM103", node.position, message, cause=f"here stands {found}", fix=fix or f"write {word}")
    return BROKEN


def shape(node: Node) -> str:
    """Say `a list` or `a mapping` or the kind of the scalar."""
    if isinstance(node, ScalarNode):
        return node.kind.value
    return "a list" if isinstance(node, SequenceNode) else "a mapping"


def text_of(node: Node, reporter: Reporter, where: str, word: str) -> str | Broken:
    """Return the text of a scalar that every YAML reader takes for a string, free of control characters."""
    if not isinstance(node, ScalarNode):
        return wrong_type(node, reporter, where, word)
    if node.kind in (ScalarKind.BOOLEAN, ScalarKind.INTEGER, ScalarKind.FLOAT):
        return wrong_type(node, reporter, where, word, fix=f'write "{node.text[:40]}" in quotes if it is meant as text')
    if node.kind is not ScalarKind.STRING:
        return wrong_type(node, reporter, where, word)
    if _INVISIBLE.search(node.text):
        cause = f"{quoted(node.text)} holds a control character"
        reporter.report("NM107", node.position, f"{where} is not plain text", cause=cause, fix="remove it")
        return BROKEN
    return node.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Kind):
    """A string with a pattern and a limit."""

    word: str
    pattern: str
    length_max: int
    rule: str
    """The pattern in words, for the cause of a finding."""
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[str] | Broken:
        """See Kind."""
        text = text_of(node, reporter, where, self.word)
        if isinstance(text, Broken):
            return text
        if len(text) > self.length_max:
            cause = f"it has {len(text)} characters, at most {self.length_max} are allowed"
            reporter.report("NM107", node.position, f"{where} is too long", cause=cause, fix="shorten it")
            return BROKEN
        if not re.fullmatch(self.pattern, text):
            message = f"{where}: {quoted(text)} is not {self.word}"
            reporter.report("NM107", node.position, message, cause=self.rule, fix=self.suggestion(text))
            return BROKEN
        return Located(value=text, position=node.position)

    def suggestion(self, text: str) -> str:
        """Return a near value that is right, when a small change makes one."""
        near = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[: self.length_max]
        return f"write {quoted(near)}" if near and re.fullmatch(self.pattern, near) else f"write {self.word}"

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"type": "string", "pattern": f"^(?:{self.pattern})$", "maxLength": self.length_max}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Kind):
    """A whole number in a range."""

    minimum: int
    maximum: int
    word: str = "a whole number"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[int] | Broken:
        """See Kind."""
        if not isinstance(node, ScalarNode) or node.kind is not ScalarKind.INTEGER:
            return wrong_type(node, reporter, where, self.word)
        if not re.fullmatch(r"-?(0|[1-9][0-9]*)", node.text) or len(node.text) > INTEGER_DIGITS_MAX:
            cause = f"{quoted(node.text)} is too long or not plainly decimal"
            fix = f"write a number from {self.minimum} to {self.maximum}"
            reporter.report("NM106", node.position, f"{where} is not a plain number", cause=cause, fix=fix)
            return BROKEN
        value = int(node.text)
        if not self.minimum <= value <= self.maximum:
            cause = f"{value} is not between {self.minimum} and {self.maximum}"
            fix = f"write {min(max(value, self.minimum), self.maximum)}"
            reporter.report("NM106", node.position, f"{where} is out of range", cause=cause, fix=fix)
            return BROKEN
        return Located(value=value, position=node.position)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True, kw_only=True)
class Boolean(Kind):
    """`true` or `false`."""

    word: str = "`true` or `false`"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[bool] | Broken:
        """See Kind."""
        if isinstance(node, ScalarNode) and node.kind is ScalarKind.BOOLEAN:
            return Located(value=node.text.lower() == "true", position=node.position)
        fix = None
        if isinstance(node, ScalarNode) and node.kind is ScalarKind.AMBIGUOUS:
            fix = f"write {'true' if node.text.lower() in ('y', 'yes', 'on') else 'false'}"
        return wrong_type(node, reporter, where, self.word, fix=fix)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Kind):
    """One of a few words."""

    options: tuple[str, ...]
    placeholder: Any = None

    @property
    def word(self) -> str:  # type: ignore[override]  # follows from the options
        """What it is, for messages."""
        return " or ".join(f"`{option}`" for option in self.options)

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[str] | Broken:
        """See Kind."""
        text = text_of(node, reporter, where, self.word)
        if isinstance(text, Broken):
            return text
        if text not in self.options:
            fix = did_you_mean(text, self.options, what="word")
            message = f"{where}: {quoted(text)} is unknown"
            reporter.report("NM107", node.position, message, cause=f"it is {self.word}", fix=fix)
            return BROKEN
        return Located(value=text, position=node.position)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"type": "string", "enum": list(self.options)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration(Kind):
    """A time with a unit, as integer milliseconds."""

    minimum_ms: int
    maximum_ms: int
    word: str = "a duration like 250ms, 2s, 5m or 1h"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[int] | Broken:
        """See Kind."""
        if not isinstance(node, ScalarNode) or node.kind in (ScalarKind.NULL, ScalarKind.AMBIGUOUS, ScalarKind.BOOLEAN):
            return wrong_type(node, reporter, where, self.word)
        match = _DURATION.fullmatch(node.text)
        if match is None:
            cause = "a duration is a whole number and a unit (ms, s, m, h) without a space"
            message = f"{where}: {quoted(node.text)} is not a duration"
            reporter.report("NM105", node.position, message, cause=cause, fix=duration_fix(node.text))
            return BROKEN
        value_ms = int(match[1]) * MILLISECONDS[match[2]]
        if not self.minimum_ms <= value_ms <= self.maximum_ms:
            low, high = format_duration(self.minimum_ms), format_duration(self.maximum_ms)
            cause = f"{node.text} is not between {low} and {high}"
            fix = f"write {low if value_ms < self.minimum_ms else high}"
            reporter.report("NM106", node.position, f"{where} is out of range", cause=cause, fix=fix)
            return BROKEN
        return Located(value=value_ms, position=node.position)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"type": "string", "pattern": f"^(?:{_DURATION.pattern})$"}


def duration_fix(text: str) -> str:
    """Say what the user probably meant with a duration that is none."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return f"say the unit: {text}s or {text}ms"
    fraction = re.fullmatch(r"([0-9]{1,6}\.[0-9]{1,3})(s|m|h)", text)
    if fraction is not None:
        return f"write {format_duration(round(float(fraction[1]) * MILLISECONDS[fraction[2]]))}"
    match = _DURATION_SPACED.fullmatch(text.strip())
    if match is not None:
        for unit in ("ms", "s", "m", "h"):
            names = {"ms": ("ms", "milli"), "s": ("s",), "m": ("m",), "h": ("h",)}[unit]
            if match[2].lower().startswith(names):
                return f"write {match[1]}{unit}"
    return "write 250ms, 2s, 5m or 1h"


def format_duration(value_ms: int) -> str:
    """Milliseconds in the largest unit that is exact: 90000 is `90s`."""
    for unit, factor in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if value_ms and value_ms % factor == 0:
            return f"{value_ms // factor}{unit}"
    return f"{value_ms}ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Kind):
    """A command line: one string in shell quoting (no shell runs it), or a list of words."""

    word: str = "a command line, e.g. `python -m app`, or a list of words"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[tuple[str, ...]] | Broken:
        """See Kind."""
        words = self._listed(node, reporter, where) if isinstance(node, SequenceNode) else None
        if words is None:
            words = self._split(node, reporter, where)
        if isinstance(words, Broken):
            return words
        if not words or not words[0] or sum(len(word) + 1 for word in words) > COMMAND_LENGTH_MAX:
            cause = f"a command has a program and at most {COMMAND_LENGTH_MAX} characters"
            reporter.report("NM109", node.position, f"{where} is empty or too long", cause=cause, fix="name a program")
            return BROKEN
        return Located(value=tuple(words), position=node.position)

    def _split(self, node: Node, reporter: Reporter, where: str) -> list[str] | Broken:
        text = text_of(node, reporter, where, self.word)
        if isinstance(text, Broken):
            return text
        try:
            return shlex.split(text[: COMMAND_LENGTH_MAX + 1])
        except ValueError as error:
            fix = "close the quote, or write a list: [program, argument]"
            reporter.report("NM109", node.position, f"{where} cannot be split", cause=f"{error}", fix=fix)
            return BROKEN

    def _listed(self, node: SequenceNode, reporter: Reporter, where: str) -> list[str] | Broken:
        words = [text_of(item, reporter, f"{where}[{index}]", "a string") for index, item in enumerate(node.items)]
        clean = [word for word in words if isinstance(word, str)]
        return clean if len(clean) == len(words) else BROKEN

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        words = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        return {"oneOf": [{"type": "string", "minLength": 1, "maxLength": COMMAND_LENGTH_MAX}, words]}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentValue(Kind):
    """Text for an environment variable; plain whole numbers need no quotes."""

    length_max: int = 32_768
    word: str = "a string or a whole number"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[str] | Broken:
        """See Kind."""
        if isinstance(node, ScalarNode) and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", node.text):
            return Located(value=node.text, position=node.position)
        if isinstance(node, ScalarNode) and node.kind is ScalarKind.STRING and not node.text:
            return Located(value="", position=node.position)
        text = text_of(node, reporter, where, self.word)
        if isinstance(text, Broken):
            return text
        if len(text) > self.length_max:
            cause = f"it has {len(text)} characters, at most {self.length_max} are allowed"
            reporter.report("NM107", node.position, f"{where} is too long", cause=cause, fix="shorten it")
            return BROKEN
        return Located(value=text, position=node.position)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"oneOf": [{"type": "string", "maxLength": self.length_max}, {"type": "integer"}]}
