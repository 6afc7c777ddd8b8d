"""Reads the YAML of templates block by block and remembers each: two resources of one kind have most of their blocks in common.

Only the plainest YAML is read here: keys and list items on lines of their own, with a scalar or a whole flow collection
behind them, which libyaml reads. Everything else is Unusual, and libyaml reads the whole document. So what is read here
is read as libyaml would read it, and often without reading it at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from generator.render.templates import HOLE
from generator.resources import open_key
from generator.resources.memo import Memo

BLOCKS_MAX = 20_000
"""Some hundreds stand in the templates; policies and their combinations make more."""
BLOCK_LINES_MAX = 60
"""Longer ones are seldom equal, and their parts are looked up anyway."""
ENTRY = re.compile(rf'(?:([A-Za-z_][A-Za-z0-9_.]*)|"([^"\\{HOLE}]*)"|("{HOLE}")):(?: +(\S.*))?$')
"""A key (plain, quoted without an escape, or a hole), and the rest of its line."""
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
        lines = [line for line in text.split("\n") if (bare := line.lstrip(" ")) and bare[0] != "#"]
        document = _Document(lines, [len(line) - len(line.lstrip(" ")) for line in lines])
        return self._block(document, 0, len(lines))

    def _block(self, document: _Document, start: int, end: int) -> Any:
        if end - start > BLOCK_LINES_MAX:
            return self._read(document, start, end)
        text = "\n".join(document.lines[start:end])
        known = self._blocks.get(text)
        return self._blocks.put(text, self._read(document, start, end)) if known is None else known

    def _read(self, document: _Document, start: int, end: int) -> Any:
        line, indent = document.first(start, end)
        if line[indent : indent + 2] in {"-", "- "}:
            return [self._item(document, *chunk) for chunk in document.chunks(start, end)]
        if ENTRY.match(line, indent):
            return self._mapping(document, start, end)
        if end - start > 1:
            raise UnusualError(line)
        return self._inline(line.strip(" "))

    def _item(self, document: _Document, start: int, end: int) -> Any:
        return self._block(document, document.strip_hyphen(start), end)

    def _mapping(self, document: _Document, start: int, end: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for first, after in document.chunks(start, end):
            entry = ENTRY.match(document.lines[first], document.indents[first])
            if entry is None:
                raise UnusualError(document.lines[first])
            plain, quoted, hole, value = entry.groups()
            key = open_key(len(mapping)) if hole is not None else plain if plain is not None else quoted
            if key in mapping or (value is not None and after > first + 1):
                raise UnusualError(document.lines[first])
            if value is not None:
                mapping[key] = self._inline(value)
            else:
                mapping[key] = self._block(document, first + 1, after) if after > first + 1 else None
        return mapping

    def _inline(self, text: str) -> Any:
        """A scalar or a flow collection that ends with its line."""
        known = self._inlines.get(text)
        if known is not None:
            return known
        if text[:1] in SPECIAL or text.startswith("...") or (text.startswith("-") and not text[1:2].isdigit()):
            raise UnusualError(text)
        return self._inlines.put(text, self._fragment(text))


@dataclass(slots=True)
class _Document:
    """The lines of a document that are neither empty nor a comment, and how far each is indented."""

    lines: list[str]
    indents: list[int]

    def first(self, start: int, end: int) -> tuple[str, int]:
        """The first line of a block and its indentation, which is that of the block: no line stands to its left."""
        if start == end or min(self.indents[start:end]) < self.indents[start]:
            raise UnusualError("indentation")
        return self.lines[start], self.indents[start]

    def chunks(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """A block cut before each line that has its indentation."""
        indent = self.indents[start]
        starts = [line for line in range(start, end) if self.indents[line] == indent]
        return zip(starts, [*starts[1:], end], strict=True)

    def strip_hyphen(self, number: int) -> int:
        """Put a space in the place of a list item's hyphen; the line in which the item begins."""
        line, indent = self.lines[number], self.indents[number]
        if line[indent : indent + 2] not in {"-", "- "}:
            raise UnusualError(line)
        rest = line[indent + 1 :].lstrip(" ")
        if not rest or rest[0] == "#":
            return number + 1
        self.lines[number] = f"{line[:indent]} {line[indent + 1 :]}"
        self.indents[number] = len(line) - len(rest)
        return number
