"""Request and reply over events: answered once, in time or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nipmesh.events.v1 import events_pb2
from services.events.bus import BusUnavailableError, EventBus, open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import ConsumerTerms
from services.events.operations import list_dead_letters
from services.events.relay import run_outbox_relay
from services.events.requests import Answer, AnswerTimeoutError, Asker, open_asker, run_answerer
from services.storage.database import Database
from services.storage.sql import Connection
from support.events import SOURCE, bus_settings, event, until
from support.nats_server import NatsServer

ASKED, ANSWERED = "nipmesh.test.v1.asked", "nipmesh.test.v1.answered"
QUICK = ConsumerTerms(answer_s_max=0.3, look_s=0.1, retry_delays_s=(0.3,))


def question(text: str) -> events_pb2.InvoiceChanged:
    return events_pb2.InvoiceChanged(owner_pubkey=text)


async def ask(asker: Asker, text: str, timeout_s: float = 10.0) -> str:
    answer = await asker.ask(type=ASKED, message=question(text), timeout_s=timeout_s)
    found = events_pb2.InvoiceChanged.FromString(answer.data)
    return found.owner_pubkey


class Answering:
    """Answers with the question in capitals, and counts."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.fails = 0

    def handle(self, connection: Connection, event: CloudEvent) -> Answer:
        text = event.unpack(events_pb2.InvoiceChanged).owner_pubkey
        if self.fails:
            self.fails -= 1
            raise RuntimeError("not yet")
        self.asked[text] += 1
        connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (event.event_id, text))
        return Answer(type=ANSWERED, message=question(text.upper()))


@contextlib.asynccontextmanager
async def answering(database: Database, bus: EventBus, answerer: Answering) -> AsyncIterator[None]:
    tasks = [
        asyncio.ensure_future(run_outbox_relay(database, bus, service="invoice", source=SOURCE)),
        asyncio.ensure_future(
            run_answerer(database, bus, name="answers", types=[ASKED], handle=answerer.handle, terms=QUICK)
        ),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_asker_gets_its_own_answers(
    database: Database, bus: EventBus, nats: NatsServer, stream: str
) -> None:
    answerer = Answering()
    async with (
        open_bus(bus_settings(nats.url, stream, service="wallet")) as other,
        answering(database, bus, answerer),
    ):
        assert other is not None
        async with (
            open_asker(other, source="spiffe://nip.mesh/service/wallet", answers=[ANSWERED]) as one,
            open_asker(other, source="spiffe://nip.mesh/service/wallet", answers=[ANSWERED]) as two,
        ):
            texts = [f"q{number}" for number in range(40)]
            askers = [(one, two)[number % 2] for number in range(40)]
            answers = await asyncio.gather(*(ask(asker, text) for asker, text in zip(askers, texts, strict=True)))
    assert answers == [text.upper() for text in texts]
    rows = await database.read(lambda connection: connection.execute("SELECT subject FROM effect").fetchall())
    assert Counter(row[0] for row in rows) == Counter(texts)


async def test_nobody_answers_in_time_and_the_late_request_is_never_answered(sqlite: Database, bus: EventBus) -> None:
    async with open_asker(bus, source=SOURCE, answers=[ANSWERED]) as asker:
        with pytest.raises(AnswerTimeoutError, match=r"no answer within 0\.3 s"):
            await ask(asker, "early", 0.3)
        answerer = Answering()
        async with answering(sqlite, bus, answerer):
            assert await ask(asker, "now") == "NOW"
        assert answerer.asked == Counter({"now": 1})


async def test_a_late_answer_is_discarded(sqlite: Database, bus: EventBus) -> None:
    answerer = Answering()
    answerer.fails = 2  # its batch, and alone: tried again after 0.3 s
    async with open_asker(bus, source=SOURCE, answers=[ANSWERED]) as asker, answering(sqlite, bus, answerer):
        asking = asyncio.create_task(ask(asker, "slow", 3.0))
        await until(lambda: answerer.asked["slow"] or asking.done())
        assert await asking == "SLOW"
        with pytest.raises(ValueError, match="waits"):
            await ask(asker, "x", 0.0)
        held = HeldBack(bus)
        async with open_asker(held, source=SOURCE, answers=[ANSWERED]) as deaf:
            with pytest.raises(AnswerTimeoutError):
                await ask(deaf, "lost", 1.0)
            held.free.set()
            assert await ask(deaf, "found") == "FOUND"


class HeldBack:
    """A bus whose deliveries come late."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self.free = asyncio.Event()

    @contextlib.asynccontextmanager
    async def subscribe(self, subscription: Any) -> AsyncIterator[Any]:
        async with self._bus.subscribe(subscription) as inflow:
            fetch = inflow.fetch

            async def late(events_max: int, *, wait_s: float = 5.0) -> Any:
                await self.free.wait()
                return await fetch(events_max, wait_s=wait_s)

            inflow.fetch = late  # type: ignore[method-assign]
            yield inflow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


async def test_a_request_that_says_no_time_limit_is_a_dead_letter(sqlite: Database, bus: EventBus) -> None:
    async with answering(sqlite, bus, Answering()):
        await bus.publish_batch([event(1, type=ASKED)])

        async def letters() -> bool:
            return bool(await list_dead_letters(sqlite))

        await until(letters)
    (letter,) = await list_dead_letters(sqlite)
    assert (letter.reason, letter.error) == ("PAYLOAD_INVALID", "the request says no expirytime")


async def test_a_bus_that_is_away_says_so(own_nats: NatsServer, stream: str) -> None:
    own_nats.stop()
    async with open_bus(bus_settings(own_nats.url, stream)) as bus:
        assert bus is not None
        async with open_asker(bus, source=SOURCE, answers=[ANSWERED]) as asker:
            with pytest.raises(BusUnavailableError, match="nobody listens there"):
                await ask(asker, "anybody")
