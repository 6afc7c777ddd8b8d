"""Tables of keys: path, what to write, default, meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from generator.manifest.collections import Either, ListOf, MapOf, RecordOf, Shorthand, join, keys_of
from generator.manifest.kinds import Choice, Duration, Kind, Number, format_duration

OPTIONS_MAX = 8
"""Longer lists of words are told by their first and last."""
TRAFFIC = "traffic"

Row = tuple[str, str, str, str]


def key_table(rows: Iterable[Row]) -> str:
    """Write rows as a Markdown table."""
    head = ("Key", "Value", "Default", "Meaning")
    return table(head, ((f"`{path}`", value, default, doc) for path, value, default, doc in rows))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table; a pipe in a cell is escaped."""
    columns = tuple(head)
    lines = [_line(columns), "|" + "---|" * len(columns), *(_line(cells) for cells in rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def key_rows(where: str, kind: Kind, *, below: frozenset[str] = frozenset()) -> Iterator[Row]:
    """Yield all keys below `where`; keys that the user chooses are in capitals.

    What is below the keys named in `below` is not followed: it has a table of its own.
    """
    if isinstance(kind, RecordOf):
        for name, spec in keys_of(kind.record).items():
            path = join(where, name)
            default = "required" if spec.required else spec.default or "none"
            yield path, value_of(spec.kind), default, spec.doc
            if name not in below:
                yield from key_rows(path, spec.kind, below=below)
    elif isinstance(kind, MapOf):
        yield from key_rows(f"{where}.{placeholder(where)}", kind.item, below=below)
    elif isinstance(kind, ListOf):
        yield from key_rows(f"{where}[]", kind.item, below=below)
    elif isinstance(kind, Either):
        yield from key_rows(where, kind.mapping, below=below)
    elif isinstance(kind, Shorthand):
        yield from key_rows(where, kind.record, below=below)


def value_of(kind: Kind) -> str:
    """Say what to write, with its limits."""
    if isinstance(kind, Duration):
        return f"a duration from {format_duration(kind.minimum_ms)} to {format_duration(kind.maximum_ms)}"
    if isinstance(kind, Number):
        return f"{kind.word.partition(' from ')[0]} from {kind.minimum} to {kind.maximum}"
    if isinstance(kind, Choice):
        return _words(kind.options)
    if isinstance(kind, ListOf) and isinstance(kind.item, Choice):
        return f"{kind.word}: {_words(kind.item.options)}"
    return kind.word


def _words(options: tuple[str, ...]) -> str:
    if len(options) > OPTIONS_MAX:
        return f"`{options[0]}` to `{options[-1]}`, by gRPC's names"
    return ", ".join(f"`{option}`" for option in options)


def placeholder(where: str) -> str:
    """Name what a user-chosen key stands for: `services` has `SERVICE`s."""
    word = where.rpartition(".")[2]
    known = {"calls": "CALLEE", "expose": "SERVICE", "external": "NAME", "env": "VARIABLE", "split": "VERSION"}
    known |= {"consumes": "PUBLISHER", "credentials": "SERVICE"}
    return known.get(word) or ("HEADER" if word in {"headers", "set", "add"} else word.removesuffix("s").upper())
