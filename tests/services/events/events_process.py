"""A service in small, as a process that can be killed: its outbox is published, and what it hears has an effect in its database.

python events_process.py NATS_URL STREAM FOLDER [POSTGRESQL_URL]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from services.events.bus import open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import ConsumerTerms, run_consumer
from services.events.leases import Leasing
from services.events.relay import run_outbox_relay
from services.storage.database import Database
from services.storage.sql import Connection
from support.events import SOURCE, bus_settings
from support.postgresql import schema_at


def record(connection: Connection, event: CloudEvent) -> None:
    connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (event.event_id, event.subject))


async def main(url: str, stream: str, folder: Path, postgresql: str = "") -> None:
    place: Any = schema_at(postgresql) if postgresql else folder / "data" / "a.db"
    async with (
        await Database.open(place, migrations=folder / "migrations") as database,
        open_bus(bus_settings(url, stream)) as bus,
    ):
        assert bus is not None
        terms = ConsumerTerms(answer_s_max=1.0, look_s=0.2)
        await asyncio.gather(
            run_outbox_relay(database, bus, service="invoice", source=SOURCE, leasing=Leasing(lease_ms=500)),
            run_consumer(database, bus, name="test", types=["nipmesh.invoice.v1.*"], handle=record, terms=terms),
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
