"""`python -m benchmarks.events [--events 20000] [--rounds 3] [--output json]`: events per second, each of them durable.

One NATS server of our own that syncs before it acknowledges (`sync_interval: always`), one SQLite outbox. Measured in turns:

- `relay`: rows in the outbox, until all are acknowledged by the server and the position is stored: the whole path;
- `bare`: nats-py publishing the same messages from memory, in the same atomic batches of 256, and nothing else;
- `single`: nats-py publishing them one by one, all sent before the first answer is awaited;
- `consumer`: from the stream through the inbox into an effect, in the database and acknowledged.

Processor time is this process's, per event: it tells more than the rate on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nats
from nats.aio.client import Client

from benchmarks.figures import Figures, end_whole, print_figures
from generator.outputs.local.processes import end_with_parent
from nipmesh.events.v1 import events_pb2
from services.chassis.settings import ChassisSettings
from services.events.bus import EventBus, open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import run_consumer
from services.events.nats.publishing import BATCH_EVENTS_MAX, message_of
from services.events.outbox import cloud_event_of, read_state
from services.events.relay import run_outbox_relay
from services.storage.database import Database
from services.storage.events import append_event, events_after
from services.storage.sql import Connection

KIND: Final = "nipmesh.invoice.v1.settled"
SOURCE: Final = "spiffe://bench.mesh/service/invoice"
EFFECTS: Final = "CREATE TABLE effect (event_id TEXT NOT NULL, subject TEXT NOT NULL) STRICT"
ROWS_PER_WRITE: Final = 1_000
START_S_MAX: Final = 20.0


@dataclass(slots=True)
class Times:
    """What each measured part took, per event."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    processor_s: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, name: str, work: Callable[[], Awaitable[object]], events: int) -> None:
        """Run `work` once."""
        start, busy = time.perf_counter(), time.process_time()
        await work()
        self.seconds.setdefault(name, []).append((time.perf_counter() - start) / events)
        self.processor_s.setdefault(name, []).append((time.process_time() - busy) / events)

    def figures(self) -> Figures:
        """Medians: events per second, processor time, and what the relay keeps of bare publishing's rate."""
        rates = {name: 1 / statistics.median(each) for name, each in self.seconds.items()}
        found: Figures = {f"{name}_per_s": round(rate) for name, rate in rates.items()}
        for name, each in self.processor_s.items():
            found[f"{name}_processor_us"] = round(statistics.median(each) * 1e6, 1)
        pairs = zip(self.seconds["bare"], self.seconds["relay"], strict=True)
        found["relay_of_bare"] = round(statistics.median(bare / relay for bare, relay in pairs), 2)
        return found


@contextlib.contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    """The URL of a server that acknowledges nothing before it is on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "nats.conf"
    configuration.write_text(
        f'listen: 127.0.0.1:{port}\njetstream {{ store_dir: "{folder}/js", sync_interval: always, max_file_store: 1TB }}\n'
    )
    program = Path(sys.executable).with_name("nats-server")
    command = [*end_with_parent(), str(program), "-c", str(configuration)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert time.monotonic() < until_s, "the server does not start"
            time.sleep(0.01)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def fill(connection: Connection, first: int, count: int) -> None:
    """Rows as the invoice service writes them."""
    for number in range(first, first + count):
        changed = events_pb2.InvoiceChanged(owner_pubkey="ab" * 32)
        changed.invoice.invoice_id = str(uuid.UUID(int=number))
        changed.invoice.account_id = f"customer:{uuid.UUID(int=number)}"
        changed.invoice.payment_hash = f"{number:064x}"
        changed.invoice.payment_request = "lnbc10u1" + "p" * 250
        append_event(connection, kind=KIND, subject=changed.invoice.invoice_id, payload=changed.SerializeToString())


def record(connection: Connection, event: CloudEvent) -> None:
    """The effect of an event."""
    connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (event.event_id, event.subject))


async def relay(database: Database, bus: EventBus, last: int) -> None:
    """Until all is published and that is noted."""
    running = asyncio.ensure_future(run_outbox_relay(database, bus, service="invoice", source=SOURCE))
    await _until(database, lambda connection: read_state(connection).published_sequence >= last, running)


async def consume(database: Database, bus: EventBus, last: int) -> None:
    """Until all had their effect."""
    consumer = run_consumer(database, bus, name="bench", types=[KIND], handle=record)
    running = asyncio.ensure_future(consumer)
    counted = "SELECT count(*) FROM storage_inbox"

    def done(connection: Connection) -> bool:
        row = connection.execute(counted).fetchone()
        return row is not None and int(row[0]) >= last

    await _until(database, done, running)


async def _until(database: Database, done: Callable[[Connection], bool], running: asyncio.Future[Any]) -> None:
    try:
        while not await database.read(done):
            assert not running.done(), running.exception()
            await asyncio.sleep(0.02)  # a look costs a fraction of a millisecond
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def publish_bare(client: Client, messages: list[Any]) -> None:
    """Atomic batches, one after the other."""
    for at in range(0, len(messages), BATCH_EVENTS_MAX):
        batch, batch_id = messages[at : at + BATCH_EVENTS_MAX], uuid.uuid4().hex
        for number, message in enumerate(batch[:-1], start=1):
            headers = {**message.headers, "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            await client.publish(message.subject, message.data, headers=headers)
        headers = {
            **batch[-1].headers,
            "Nats-Batch-Id": batch_id,
            "Nats-Batch-Sequence": str(len(batch)),
            "Nats-Batch-Commit": "1",
        }
        answer = await client.request(batch[-1].subject, batch[-1].data, timeout=60, headers=headers)
        assert b"error" not in answer.data, answer.data


async def publish_singly(client: Client, messages: list[Any]) -> None:
    """All sent, then all answers."""
    js = client.jetstream(publish_async_max_pending=len(messages))
    answers = [await js.publish_async(each.subject, each.data, headers=dict(each.headers)) for each in messages]
    await asyncio.gather(*answers)


@contextlib.asynccontextmanager
async def opened(folder: Path, url: str, stream: str) -> AsyncIterator[tuple[Database, EventBus, Client]]:
    """A fresh database, a fresh stream, a bare client."""
    migrations = folder / "migrations"
    if not migrations.exists():
        (migrations / "sqlite").mkdir(parents=True)
        (migrations / "sqlite" / "0001_effects.sql").write_text(EFFECTS)
    settings = ChassisSettings(mesh=stream, service="invoice", events_url=url, log_level="error")
    async with (
        await Database.open(folder / f"{stream}.db", migrations=migrations) as database,
        open_bus(settings) as bus,
    ):
        assert bus is not None
        client = await nats.connect(url)
        try:
            yield database, bus, client
        finally:
            await client.close()


async def measure_round(folder: Path, url: str, number: int, events: int, times: Times) -> None:
    """Each part once."""
    async with opened(folder, url, f"bench{number}") as (database, bus, client):
        for first in range(0, events, ROWS_PER_WRITE):
            count = min(ROWS_PER_WRITE, events - first)
            await database.write(lambda connection: fill(connection, first, count))  # noqa: B023  # awaited here
        rows = await database.read(lambda connection: events_after(connection, 0, limit=events))
        while not bus.health().connected:  # noqa: ASYNC110  # the port has no event for it
            await asyncio.sleep(0.01)
        await times.measure("relay", lambda: relay(database, bus, events), events)
        await times.measure("consumer", lambda: consume(database, bus, events), events)
        for name, publish in (("bare", publish_bare), ("single", publish_singly)):
            made = [cloud_event_of(row, "invoice", SOURCE, name) for row in rows]
            messages = [message_of(event, f"bench{number}", "invoice") for event in made]
            part = messages if name == "bare" else messages[: max(1, events // 10)]
            await times.measure(name, lambda: publish(client, part), len(part))  # noqa: B023  # awaited here
        await client.jetstream().delete_stream(f"bench{number}")


async def measure(*, events: int, rounds: int) -> Figures:
    """All parts, in turns."""
    times = Times()
    with tempfile.TemporaryDirectory(prefix="nipmesh-bench-") as name, nats_server(Path(name)) as url:
        for number in range(rounds):
            await measure_round(Path(name), url, number, events, times)
    return times.figures()


def main() -> None:
    """Measure and print."""
    end_whole()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.events", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(events=arguments.events, rounds=arguments.rounds))
    print_figures(figures, arguments.output, part="events")


if __name__ == "__main__":
    main()
