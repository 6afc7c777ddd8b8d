"""Writes JSON values as YAML that every YAML reader takes the same way: text is always quoted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from generator.render.templates import scalar

PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{2,}$")
"""Longer than `n`, `y` and `on`; the other words that YAML 1.1 takes for something else are quoted below."""
AMBIGUOUS = frozenset({"yes", "off", "true", "false", "null"})


def emit(value: Mapping[str, Any]) -> str:
    """Write a document in block style, keys in their order."""
    return "\n".join(_lines(value, "")) + "\n"


def literal(text: str) -> str:
    """Keep Compose from taking a `$` in a value for a variable."""
    return text.replace("$", "$$")


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entry(f"{indent}{_key(key)}:", item, indent + "  ")
        return
    for item in value:
        if isinstance(item, Mapping) and item:
            first, *rest = _lines(item, indent + "  ")
            yield f"{indent}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{indent}- {scalar(item)}"


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping | list) and value:
        yield head
        yield from _lines(value, indent)
    else:
        yield f"{head} {scalar(value)}"


def _key(key: str) -> str:
    return key if PLAIN_KEY.match(key) and key.lower() not in AMBIGUOUS else scalar(key)
