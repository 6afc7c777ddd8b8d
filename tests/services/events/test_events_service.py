"""EventService over gRPC: what an operator sees and does, with a real bus, and while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from generator.introspection.events import EventCaller, EventsCallError
from nipmesh.operations.v1 import event_service_pb2 as pb
from nipmesh.operations.v1.event_service_pb2_grpc import EventServiceStub
from services.chassis.errors import reason_of
from services.chassis.service import Application, ServiceDefinition
from services.chassis.settings import ChassisSettings
from services.chassis.testing import as_service, as_user, running
from services.events.cloud_event import CloudEvent
from services.events.runtime import open_events
from services.events.servicer import EVENT_ACCESS, add_event_service
from services.events.verdicts import DeadLetterError
from services.storage.database import Database
from services.storage.events import append_event
from services.storage.pages import PageTokens
from services.storage.sql import Connection
from support.events import SETTLED, payload, until
from support.meshes import repository_mesh
from support.nats_server import NatsServer

OPERATOR = as_user("11" * 32, role="operator")
REFUSED = 3
"""Of the events of a test, those that the consumer refuses."""


class InvoiceLike(ChassisSettings):
    """Of a service called invoice."""

    service: str = "invoice"


class Bench:
    """A service that publishes events and hears its own."""

    def __init__(
        self, app: Application[Any], channel: grpc.aio.Channel, database: Database, handled: list[str]
    ) -> None:
        self.stub: Any = EventServiceStub(channel)
        self.app, self.database, self.handled = app, database, handled

    async def say(self, numbers: range) -> None:
        def store(connection: Connection) -> None:
            for number in numbers:
                append_event(connection, kind=SETTLED, subject=f"invoice-{number}", payload=payload(number))

        await self.database.write(store)

    async def status(self) -> pb.GetEventStatusResponse:
        response = await self.stub.GetEventStatus(pb.GetEventStatusRequest(), metadata=OPERATOR, timeout=10)
        assert isinstance(response, pb.GetEventStatusResponse)
        return response

    async def letters(self, **request: Any) -> pb.ListDeadLettersResponse:
        response = await self.stub.ListDeadLetters(pb.ListDeadLettersRequest(**request), metadata=OPERATOR, timeout=10)
        assert isinstance(response, pb.ListDeadLettersResponse)
        return response


@asynccontextmanager
async def bench(folder: Path, url: str, migrations: Path, stream: str, *, refuses: set[str]) -> AsyncIterator[Bench]:
    handled: list[str] = []
    opened: list[Database] = []

    def handle(connection: Connection, event: CloudEvent) -> None:
        if event.subject in refuses:
            raise DeadLetterError("nobody wants it")
        handled.append(event.subject)

    @asynccontextmanager
    async def lifespan(app: Application[ChassisSettings]) -> AsyncIterator[None]:
        place = folder / "events.db"
        async with await Database.open(place, migrations=migrations) as database, open_events(app, database) as events:
            opened.append(database)
            events.consume(name="zaps", types=[SETTLED], handle=handle)
            add_event_service(app, events, await PageTokens.open(database))
            yield

    service = ServiceDefinition(settings=InvoiceLike, access=EVENT_ACCESS, lifespan=lifespan)
    values = {"mesh": stream, "events_url": url, "events_stream": stream}
    async with running(service, folder, **values) as (app, channel):
        yield Bench(app, channel, opened[0], handled)


async def failed(call: Awaitable[object]) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), reason_of(caught.value)


async def test_an_operator_sees_dead_letters_and_has_them_tried_again_or_deleted(
    nats: NatsServer, stream: str, migrations: Path, tmp_path: Path
) -> None:
    refuses = {f"invoice-{number}" for number in range(REFUSED)}
    async with bench(tmp_path, nats.url, migrations, stream, refuses=refuses) as service:
        await service.say(range(10))
        await until(lambda: len(service.handled) >= 10 - REFUSED)

        async def all_dead() -> bool:
            return len((await service.letters()).dead_letters) == REFUSED

        await until(all_dead)
        status = await service.status()
        assert status.bus.connected
        assert (status.outbox.newest_sequence, status.outbox.published_sequence, status.outbox.behind) == (10, 10, 0)
        (consumer,) = status.consumers
        assert (consumer.name, list(consumer.types), consumer.dead, consumer.pending) == ("zaps", [SETTLED], REFUSED, 0)
        first = await service.letters(page_size=2, consumer="zaps")
        second = await service.letters(page_size=2, consumer="zaps", page_token=first.next_page_token)
        found = [*first.dead_letters, *second.dead_letters]
        assert {letter.subject for letter in found} == refuses
        assert not second.next_page_token
        assert {(letter.type, letter.reason, letter.error) for letter in found} == {
            (SETTLED, "HANDLER_REFUSED", "nobody wants it")
        }
        assert (await service.letters(consumer="other")).dead_letters == []
        wanted = found[0]
        refuses.discard(wanted.subject)
        replay = pb.ReplayDeadLettersRequest(consumer="zaps", numbers=[wanted.number])
        assert (await service.stub.ReplayDeadLetters(replay, metadata=OPERATOR, timeout=10)).count == 1
        await until(lambda: wanted.subject in service.handled)
        discard = pb.DiscardDeadLettersRequest(consumer="zaps")
        assert (await service.stub.DiscardDeadLetters(discard, metadata=OPERATOR, timeout=10)).count == REFUSED - 1
        assert (await service.letters()).dead_letters == []


async def test_what_was_published_and_heard_is_seen_again_and_has_no_second_effect_unless_wanted(
    nats: NatsServer, stream: str, migrations: Path, tmp_path: Path
) -> None:
    async with bench(tmp_path, nats.url, migrations, stream, refuses=set()) as service:
        await service.say(range(5))
        await until(lambda: len(service.handled) == 5)
        request = pb.ReplayOutboxRequest(after_sequence=2)
        answer = await service.stub.ReplayOutbox(request, metadata=OPERATOR, timeout=10)
        assert (answer.after_sequence, answer.to_sequence) == (2, 5)
        again = pb.ReplayConsumerRequest(consumer="zaps", position=1)
        await service.stub.ReplayConsumer(again, metadata=OPERATOR, timeout=10)
        await service.say(range(5, 6))
        await until(lambda: "invoice-5" in service.handled)
        assert len(service.handled) == 6
        again = pb.ReplayConsumerRequest(consumer="zaps", position=4, again=True)
        await service.stub.ReplayConsumer(again, metadata=OPERATOR, timeout=10)
        await until(lambda: len(service.handled) >= 9)
        assert service.handled[6:9] == ["invoice-3", "invoice-4", "invoice-5"]


async def test_who_may_not_and_what_is_not_there(
    nats: NatsServer, stream: str, migrations: Path, tmp_path: Path
) -> None:
    async with bench(tmp_path, nats.url, migrations, stream, refuses=set()) as service:
        status = pb.GetEventStatusRequest()
        for metadata in (as_user("22" * 32), as_service("payment")):
            code, _ = await failed(service.stub.GetEventStatus(status, metadata=metadata, timeout=10))
            assert code is grpc.StatusCode.PERMISSION_DENIED
        unknown = pb.ReplayConsumerRequest(consumer="nobody")
        assert await failed(service.stub.ReplayConsumer(unknown, metadata=OPERATOR, timeout=10)) == (
            grpc.StatusCode.NOT_FOUND,
            "CONSUMER_NOT_FOUND",
        )
        late = pb.ReplayOutboxRequest(after_sequence=99)
        assert await failed(service.stub.ReplayOutbox(late, metadata=OPERATOR, timeout=10)) == (
            grpc.StatusCode.OUT_OF_RANGE,
            "RESUME_POINT_EXPIRED",
        )
        empty = pb.DiscardDeadLettersRequest()
        assert (await failed(service.stub.DiscardDeadLetters(empty, metadata=OPERATOR, timeout=10)))[
            1
        ] == "REQUEST_INVALID"


async def test_the_outbox_is_seen_while_the_bus_is_away(stream: str, migrations: Path, tmp_path: Path) -> None:
    async with bench(tmp_path, "nats://127.0.0.1:1", migrations, stream, refuses=set()) as service:
        await service.say(range(4))
        await asyncio.sleep(0)
        status = await service.status()
        assert not status.bus.connected
        assert status.bus.error
        assert (status.outbox.behind, status.outbox.published_sequence) == (4, 0)
        assert status.outbox.HasField("behind_since_time")
        assert not any(consumer.HasField("pending") for consumer in status.consumers)


async def test_the_command_line_asks_with_the_descriptors_of_the_mesh(
    nats: NatsServer, stream: str, migrations: Path, tmp_path: Path
) -> None:
    """`nipmesh events` knows no message of ours but by the descriptors; it speaks to the socket of a replica."""
    caller = EventCaller(repository_mesh().descriptor_set)
    async with bench(tmp_path, nats.url, migrations, stream, refuses={"invoice-0"}) as service:
        await service.say(range(3))
        await until(lambda: len(service.handled) == 2)
        target = service.app.settings.listen

        async def ask(method: str, **request: Any) -> dict[str, Any]:
            return await asyncio.to_thread(caller.call, target, OPERATOR, method, **request)

        async def is_dead() -> bool:
            return len((await ask("ListDeadLetters"))["dead_letters"]) == 1

        await until(is_dead)
        status = await ask("GetEventStatus")
        assert (status["outbox"]["newest_sequence"], status["outbox"]["behind"], status["bus"]["connected"]) == (
            "3",
            "0",
            True,
        )
        assert [(one["name"], one["dead"]) for one in status["consumers"]] == [("zaps", "1")]
        (letter,) = (await ask("ListDeadLetters", consumer="zaps"))["dead_letters"]
        assert (letter["subject"], letter["reason"]) == ("invoice-0", "HANDLER_REFUSED")
        assert await ask("DiscardDeadLetters", consumer="zaps", numbers=[int(letter["number"])]) == {"count": "1"}
        with pytest.raises(EventsCallError, match="NOT_FOUND"):
            await ask("ReplayConsumer", consumer="nobody")
        with pytest.raises(EventsCallError, match="PERMISSION_DENIED"):
            await asyncio.to_thread(caller.call, target, as_service("payment"), "GetEventStatus")
    with pytest.raises(EventsCallError, match="UNAVAILABLE"):
        await asyncio.to_thread(caller.call, f"unix:{tmp_path}/nobody.sock", OPERATOR, "GetEventStatus")


def test_a_mesh_without_the_service_is_told_apart() -> None:
    with pytest.raises(KeyError):
        EventCaller(b"")
