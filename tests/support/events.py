"""Events for tests of the bus: made by number, published, and what a service of the mesh is told about its bus."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nipmesh.events.v1 import events_pb2
from services.chassis.settings import ChassisSettings
from services.events.cloud_event import CloudEvent
from services.storage.events import append_event
from services.storage.sql import Connection

_numbers = itertools.count()
SETTLED = "nipmesh.invoice.v1.settled"
SOURCE = "spiffe://nip.mesh/service/invoice"


def bus_settings(url: str, stream: str, **values: Any) -> ChassisSettings:
    """A service called invoice, on a bus."""
    return ChassisSettings(mesh=stream, service=values.pop("service", "invoice"), events_url=url, **values)


def new_stream() -> str:
    """A stream that no other test uses."""
    return f"mesh{next(_numbers)}"


def payload(number: int) -> bytes:
    changed = events_pb2.InvoiceChanged()
    changed.invoice.invoice_id = f"invoice-{number}"
    return changed.SerializeToString()


def event(number: int, **values: Any) -> CloudEvent:
    given: dict[str, Any] = {
        "event_id": f"event-{number}",
        "type": SETTLED,
        "source": SOURCE,
        "subject": f"invoice-{number}",
        "time_ms": 1_790_000_000_123,
        "data": payload(number),
        "schema": "nipmesh.events.v1.InvoiceChanged",
    }
    return CloudEvent(**(given | values))


def events(numbers: range) -> list[CloudEvent]:
    return [event(number) for number in numbers]


def append(connection: Connection, numbers: range, *, subjects: int = 0) -> int:
    """So many rows in the outbox; about `subjects` objects, or each about one of its own."""
    last = 0
    for number in numbers:
        subject = number % subjects if subjects else number
        last = append_event(connection, kind=SETTLED, subject=f"invoice-{subject}", payload=payload(number))
    return last


async def until(condition: Callable[[], Any], what: str = "", seconds: float = 30.0) -> None:
    """Return once the condition holds; it may be a coroutine function."""
    until_s = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < until_s, what or "it does not come true"
        await asyncio.sleep(0.01)


def write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path
