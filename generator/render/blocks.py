"""Reads the YAML of templates block by block and remembers each: two resources of one kind have most of their blocks in common.

Only the plainest YAML is read here: keys and list items on lines of their own, with a scalar or a whole flow collection
behind them, which libyaml reads. Everything else is Unusual, and libyaml reads the whole document. So what is read here
is read as libyaml would read it, and often without reading it at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from generator.render.templates import HOLE
from generator.resources import open_key
from generator.resources.memo import Memo

BLOCKS_MAX = 20_000
"""Some hundreds stand in the templates; policies and their combinations make more."""
ENTRY = re.compile(rf'(?:([A-Za-z_][A-Za-z0-9_.]*)|"([^"\\\n{HOLE}]*)"|("{HOLE}")):(?: +(\S[^\n]*))?(?:\n|$)')
"""A key (plain, quoted without an escape, or a hole), and the rest of its line."""
IGNORED = re.compile(r"^ *(?:#[^\n]*)?\n", re.MULTILINE)
"""Empty lines and lines that are nothing but a comment."""

SPECIAL = frozenset({"", *"#|>&*!?%@`:,]}"})
"""What begins something else than a plain scalar, a quoted one or a flow collection."""

Fragment = Callable[[str], Any]
"""Reads a scalar or a flow collection; raises UnusualError where it is neither."""


class UnusualError(Exception):
    """YAML that only libyaml may read."""


class BlockReader:
    """Reads documents; equal blocks are one object, which nobody may change."""

    def __init__(self, fragment: Fragment) -> None:
        self._fragment = fragment
        self._blocks: Memo[str, Any] = Memo(BLOCKS_MAX)
        self._inlines: Memo[str, Any] = Memo(BLOCKS_MAX)

    def read(self, text: str) -> Any:
        """The document. Raises UnusualError, and whatever reading a fragment raises."""
        if "\r" in text or "\t" in text or not text.replace(HOLE, "").isascii():
            raise UnusualError("characters that may break a line")
        return self._block(IGNORED.sub("", text))

    def _block(self, text: str) -> Any:
        known = self._blocks.get(text)
        return self._blocks.put(text, self._read(text)) if known is None else known

    def _read(self, text: str) -> Any:
        indent = len(text) - len(text.lstrip(" "))
        if text.startswith("- ", indent):
            return [self._block(item) for item in _items(text, indent)]
        if ENTRY.match(text, indent):
            return self._mapping(text, indent)
        line = text.removesuffix("\n")
        if "\n" in line:
            raise UnusualError(line)
        return self._inline(line.strip(" "))

    def _mapping(self, text: str, indent: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        holes = 0
        for chunk in _chunks(text, indent):
            entry = ENTRY.match(chunk, indent)
            if entry is None:
                raise UnusualError(chunk)
            plain, quoted, hole, value = entry.groups()
            key = plain if plain is not None else quoted
            if hole is not None:
                key, holes = open_key(holes), holes + 1
            if key in mapping:
                raise UnusualError(chunk)
            mapping[key] = self._value(value, chunk[entry.end() :], indent)
        return mapping

    def _value(self, value: str | None, below: str, indent: int) -> Any:
        if value is None:
            if below and not below.startswith(" " * (indent + 1)):
                raise UnusualError(below)
            return self._block(below) if below else None
        if below:
            raise UnusualError(below)
        return self._inline(value)

    def _inline(self, text: str) -> Any:
        """A scalar or a flow collection that ends with its line."""
        known = self._inlines.get(text)
        if known is not None:
            return known
        if text[:1] in SPECIAL or text.startswith("...") or (text.startswith("-") and not text[1:2].isdigit()):
            raise UnusualError(text)
        return self._inlines.put(text, self._fragment(text))


def _items(text: str, indent: int) -> Iterator[str]:
    """The items of a list, each with a space where its hyphen was."""
    for chunk in _chunks(text, indent):
        if not chunk.startswith("- ", indent) or chunk[indent + 2 : indent + 3] in {"", "\n", "#"}:
            raise UnusualError(chunk)
        yield f"{chunk[:indent]} {chunk[indent + 1 :]}"


def _chunks(text: str, indent: int) -> Iterator[str]:
    """A block cut before each line that begins at its own indentation; the other lines begin further to the right."""
    starts = [found.start() for found in _at(indent).finditer(text)]
    if not starts or starts[0] != 0 or _outside(indent).search(text):
        raise UnusualError(text)
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield text[start:end]


@cache
def _at(indent: int) -> re.Pattern[str]:
    return re.compile(rf"^ {{{indent}}}(?=[^ \n])", re.MULTILINE)


@cache
def _outside(indent: int) -> re.Pattern[str]:
    """A line that begins further to the left."""
    return re.compile(rf"^ {{0,{indent - 1}}}[^ \n]" if indent else r"\Z.", re.MULTILINE)
