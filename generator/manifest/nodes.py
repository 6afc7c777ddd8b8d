"""YAML text to a tree of nodes that know their place. Bounded in size, depth and expansion; never raises for any bytes.

Scalars follow the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema). Words that a 1.1 reader takes
for booleans (`on`, `n`, ...) are kept apart as AMBIGUOUS, because editors, Envoy and PyYAML disagree about them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from generator.manifest.finding import START, Position, Reporter, quoted

FILE_BYTES_MAX = 4 * 1024 * 1024
"""A manifest of 1,000 services is about 300 KiB."""
DEPTH_MAX = 16
"""The manifest needs 6 levels."""
NODES_MAX = 400_000
"""Nodes after expansion of aliases: what a bomb multiplies."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml when PyYAML has it: ten times as fast, the same events."""

_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""Where libyaml ends a line, and so does `str.splitlines` in what is printable."""
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN = frozenset({"true", "True", "TRUE", "false", "False", "FALSE"})
_AMBIGUOUS = frozenset(
    spelling for word in ("y", "n", "yes", "no", "on", "off") for spelling in (word, word.title(), word.upper())
)
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class ScalarKind(enum.Enum):
    """How YAML 1.2 reads a scalar; the values are words for messages."""

    STRING = "a string"
    BOOLEAN = "a boolean"
    AMBIGUOUS = "a boolean in some YAML readers"
    INTEGER = "a whole number"
    FLOAT = "a fraction"
    NULL = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarNode:
    """One value, as it was written."""

    text: str
    kind: ScalarKind
    position: Position
    size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceNode:
    """A list."""

    items: tuple[Node, ...]
    position: Position
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingNode:
    """A mapping; keys are scalars and each appears once."""

    entries: tuple[tuple[ScalarNode, Node], ...]
    position: Position
    size: int


Node = ScalarNode | SequenceNode | MappingNode


class RefusedError(Exception):
    """The text cannot become a tree; caught in `read_nodes`, which reports what it carries."""

    def __init__(self, code: str, position: Position, message: str, *, cause: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.position, self.message, self.cause, self.fix = code, position, message, cause, fix


def read_text(path: Path, reporter: Reporter) -> str | None:
    """Return the manifest's text; None after a finding when it cannot be had."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        cause = f"opening it failed: {reason}"
        fix = "name the file with `nipmesh -f FILE`, or run in its folder"
        fix += "; `nipmesh init` writes one" if isinstance(error, FileNotFoundError) else ""
        reporter.report("NM001", START, "cannot read the manifest", cause=cause, fix=fix)
        return None
    return decode(raw, reporter)


def decode(raw: bytes, reporter: Reporter) -> str | None:
    """UTF-8 bytes to text without a byte order mark; None after a finding."""
    if len(raw) > FILE_BYTES_MAX:
        cause = f"a manifest has at most {FILE_BYTES_MAX} bytes"
        reporter.report("NM004", START, "the manifest is too large", cause=cause, fix="split the mesh")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = _end_of(raw[: error.start].decode("utf-8-sig", "replace"))
        cause = f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8: {error.reason}"
        reporter.report("NM002", position, "not UTF-8 text", cause=cause, fix="save the file as UTF-8")
        return None


def read_nodes(text: str, reporter: Reporter) -> Node | None:
    """Return the root node of the only document; None after a finding."""
    try:
        _refuse_unprintable(text)
        return _Builder(reporter).build(yaml.parse(text, Loader=Loader))
    except RefusedError as refused:
        reporter.report(refused.code, refused.position, refused.message, cause=refused.cause, fix=refused.fix)
    except yaml.YAMLError as error:
        position = _error_position(error, _end_of(text))
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        context = getattr(error, "context", None)
        cause = f"{context}: {problem}" if context else f"{problem}"
        fix = "look at indentation, colons, brackets and quotes on this line and the one before"
        reporter.report("NM003", position, "not valid YAML", cause=cause, fix=fix)
    return None


def _refuse_unprintable(text: str) -> None:
    found = _UNPRINTABLE.search(text)
    if found is None:
        return
    position = _end_of(text[: found.start()])
    cause = f"the character U+{ord(found[0]):04X} is not allowed in YAML"
    raise RefusedError("NM003", position, "a control character", cause=cause, fix="remove it")


def _end_of(text: str) -> Position:
    """The place right after a text."""
    lines = _LINE_END.split(text)
    return Position(line=len(lines), column=len(lines[-1]) + 1)


def _error_position(error: yaml.YAMLError, end: Position) -> Position:
    """Where to look: the problem, or the beginning of what was never closed when the problem is the end of the file.

    libyaml takes a file without a line end for one that has it, and then counts a line too many.
    """
    problem, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    at_end = problem is None or problem.line + 1 >= end.line
    return min(_position(context if at_end and context is not None else problem), end)


def _position(mark: Any) -> Position:
    return START if mark is None else Position(line=mark.line + 1, column=mark.column + 1)


@dataclass(slots=True)
class _Frame:
    """A collection whose end has not been seen."""

    mapping: bool
    position: Position
    anchor: str | None
    children: list[Node] = field(default_factory=list)
    size: int = 1


class _Builder:
    """Events to nodes with an explicit stack: depth costs memory, never Python's stack."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.stack: list[_Frame] = []
        self.anchors: dict[str, Node | None] = {}
        self.size = 0
        self.root: Node | None = None
        self.documents = 0

    def build(self, events: Iterator[Any]) -> Node:
        """Consume all events and give the root back; an empty file is an empty mapping."""
        for event in events:
            self._take(event)
        if self.root is None:
            return MappingNode(entries=(), position=START, size=1)
        return self.root

    def _take(self, event: Any) -> None:
        position = _position(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            self._start_document(position)
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event, position)
            self._add(_scalar(event, position), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._aliased(event.anchor, position), None)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._refuse_tag(event, position)
            self._open(isinstance(event, yaml.MappingStartEvent), position, event.anchor)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._close()

    def _start_document(self, position: Position) -> None:
        self.documents += 1
        if self.documents > 1:
            cause = "`---` starts a second YAML document"
            raise RefusedError("NM006", position, "more than one document", cause=cause, fix="keep one mesh per file")

    def _refuse_tag(self, event: Any, position: Position) -> None:
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:str"):
            cause = f"{quoted(str(event.tag))} is a YAML tag; manifests have plain values only"
            raise RefusedError("NM006", position, "a YAML tag", cause=cause, fix="remove the tag")

    def _aliased(self, anchor: str | None, position: Position) -> Node:
        node = self.anchors.get(anchor or "")
        if node is None:
            cause = f"the anchor {quoted(anchor or '')} is not complete before this alias"
            fix = "define the anchor with & before it is used, and not around itself"
            raise RefusedError("NM006", position, "an alias without an anchor", cause=cause, fix=fix)
        return node

    def _open(self, mapping: bool, position: Position, anchor: str | None) -> None:
        if len(self.stack) >= DEPTH_MAX:
            cause = f"a manifest is at most {DEPTH_MAX} levels deep"
            raise RefusedError("NM004", position, "nested too deeply", cause=cause, fix="remove levels")
        if anchor is not None:
            self.anchors[anchor] = None
        self.stack.append(_Frame(mapping=mapping, position=position, anchor=anchor))

    def _close(self) -> None:
        frame = self.stack.pop()
        self.size -= frame.size - 1
        node: Node
        if frame.mapping:
            node = MappingNode(entries=self._entries(frame), position=frame.position, size=frame.size)
        else:
            node = SequenceNode(items=tuple(frame.children), position=frame.position, size=frame.size)
        self._add(node, frame.anchor)

    def _add(self, node: Node, anchor: str | None) -> None:
        self.size += node.size
        if self.size > NODES_MAX:
            cause = f"with all aliases written out it has more than {NODES_MAX} values"
            raise RefusedError("NM004", node.position, "too many values", cause=cause, fix="remove the nested aliases")
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        self.stack[-1].children.append(node)
        self.stack[-1].size += node.size

    def _entries(self, frame: _Frame) -> tuple[tuple[ScalarNode, Node], ...]:
        entries: dict[str, tuple[ScalarNode, Node]] = {}
        for key, value in zip(frame.children[::2], frame.children[1::2], strict=True):
            if not isinstance(key, ScalarNode):
                cause = "a key is a list or a mapping"
                raise RefusedError(
                    "NM006", key.position, "a key that is not a word", cause=cause, fix="write a plain key"
                )
            if key.text in entries:
                self._duplicate(key, entries[key.text][0])
                continue
            entries[key.text] = (key, value)
        return tuple(entries.values())

    def _duplicate(self, key: ScalarNode, first: ScalarNode) -> None:
        cause = f"{quoted(key.text)} stands on line {first.position.line} already; YAML readers would drop one of them"
        fix = "keep one of them, or merge the two"
        self.reporter.report("NM005", key.position, f"duplicate key {quoted(key.text)}", cause=cause, fix=fix)


def _scalar(event: Any, position: Position) -> ScalarNode:
    plain = event.style in (None, "") and event.tag is None
    kind = _kind(event.value) if plain else ScalarKind.STRING
    return ScalarNode(text=event.value, kind=kind, position=position)


def _kind(text: str) -> ScalarKind:
    if text in _NULL:
        return ScalarKind.NULL
    if text in _BOOLEAN:
        return ScalarKind.BOOLEAN
    if text in _AMBIGUOUS:
        return ScalarKind.AMBIGUOUS
    if _INTEGER.fullmatch(text):
        return ScalarKind.INTEGER
    return ScalarKind.FLOAT if _FLOAT.fullmatch(text) else ScalarKind.STRING
