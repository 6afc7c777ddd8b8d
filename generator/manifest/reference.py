"""The manifest's reference as a Markdown table, out of the same declarations that load it."""

from __future__ import annotations

from collections.abc import Iterator

from generator.manifest.collections import Either, MapOf, RecordOf, join, keys_of
from generator.manifest.kinds import Kind
from generator.manifest.types import MANIFEST


def reference() -> str:
    """Return one row per key in the order of the declarations: path, what to write, default, meaning."""
    head = "| Key | Value | Default | Meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{path}` | {word} | {default} | {doc} |\n" for path, word, default, doc in rows("", MANIFEST)
    )


def rows(where: str, kind: Kind) -> Iterator[tuple[str, str, str, str]]:
    """Yield (path, value, default, meaning) of all keys below `where`; keys that the user chooses are in capitals."""
    if isinstance(kind, RecordOf):
        for name, spec in keys_of(kind.record).items():
            path = join(where, name)
            default = "required" if spec.required else spec.default or "none"
            yield path, spec.kind.word, default, spec.doc
            yield from rows(path, spec.kind)
    elif isinstance(kind, MapOf):
        yield from rows(f"{where}.{placeholder(where)}", kind.item)
    elif isinstance(kind, Either):
        yield from rows(where, kind.mapping)


def placeholder(where: str) -> str:
    """Name what a user-chosen key stands for: `services` has `SERVICE`s."""
    word = where.rpartition(".")[2]
    return word.removesuffix("s").upper()
