"""The catalogue of events: which message each CloudEvents type has as its payload, as the protos of nipmesh.events.v1 say it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import nipmesh.events.v1 as events
from nipmesh.events.v1 import options_pb2

AUDIT_PREFIX: Final = "nipmesh.audit."
"""Types of the audit stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventType:
    """One type: its payload's message, what its subject is, and when it is recorded."""

    type: str
    message: str
    subject: str
    when: str


@cache
def catalogue() -> Mapping[str, EventType]:
    """Every type of the mesh's own services, by its name."""
    found: dict[str, EventType] = {}
    for message in _messages():
        options = message.GetOptions().Extensions[options_pb2.event]
        for each in options.types:
            assert each.type not in found, f"two messages are the payload of {each.type}"
            found[each.type] = EventType(
                type=each.type, message=message.full_name, subject=options.subject, when=each.when
            )
    return found


def message_name(kind: str) -> str:
    """The full name of a type's message; empty for a type that the catalogue does not know."""
    entry = catalogue().get(kind)
    return "" if entry is None else entry.message


def _messages() -> Iterator[Any]:
    """The descriptors of all messages in nipmesh.events.v1, in a fixed order."""
    for module in sorted(pkgutil.iter_modules(events.__path__), key=lambda each: each.name):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"{events.__name__}.{module.name}").DESCRIPTOR
            yield from (message for _, message in sorted(descriptor.message_types_by_name.items()))
