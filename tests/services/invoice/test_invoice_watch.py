"""WatchInvoices: every change once, in order, for whom it concerns, over reconnects to the other replica and drains."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import apsw
import grpc
import pytest

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.errors import reason_of
from services.chassis.settings import ChassisSettings
from services.chassis.testing import as_user
from services.invoice.service import FILE_NAME
from services.invoice.watching import Watched, Watcher
from services.storage.database import Database
from services.storage.events import KEPT_MS, remove_old_events
from services.storage.places import place_of

ALICE, BOB = "aa" * 32, "bb" * 32
AS_ALICE, AS_BOB, AS_OPERATOR = as_user(ALICE), as_user(BOB), as_user("0f" * 32, role="operator")
State = invoice_pb2.Invoice
NAMES = {number: name.removeprefix("STATE_") for name, number in invoice_pb2.Invoice.State.items()}


def _id() -> str:
    return str(uuid.uuid4())


@contextlib.asynccontextmanager
async def _watching(replica: Any, metadata: Any = AS_ALICE, **fields: Any) -> AsyncIterator[Any]:
    """A stream; its first message has arrived when this yields a function that reads the next ones."""
    call = replica.invoices.WatchInvoices(pb.WatchInvoicesRequest(**fields), metadata=metadata)

    async def read(count: int = 1) -> list[pb.WatchInvoicesResponse]:
        messages = []
        while len(messages) < count:
            message = await asyncio.wait_for(call.read(), 5)
            assert message is not grpc.aio.EOF
            if message.HasField("invoice"):
                messages.append(message)
        return messages

    read.call = call  # type: ignore[attr-defined]
    try:
        yield read
    finally:
        call.cancel()


async def _first(read: Any) -> pb.WatchInvoicesResponse:
    message: pb.WatchInvoicesResponse = await asyncio.wait_for(read.call.read(), 5)
    return message


def _story(messages: list[pb.WatchInvoicesResponse]) -> list[str]:
    return [f"{NAMES[message.previous_state]}>{NAMES[message.invoice.state]}" for message in messages]


async def _pay(replica: Any, invoice: Any) -> None:
    payment_id = _id()
    await replica.lock(invoice.payment_request, payment_id)
    await replica.commit(payment_id)


async def test_every_change_comes_once_with_a_rising_sequence_and_no_preimage(replicas: Any) -> None:
    one, other = replicas
    async with _watching(one) as read:
        assert not (await _first(read)).HasField("invoice"), "a heartbeat says where the stream begins"
        invoice, released = await other.create(), _id()
        await one.lock(invoice.payment_request, released)
        await other.release(released)
        await _pay(one, invoice)
        messages = await read(5)
    assert _story(messages) == [
        "UNSPECIFIED>OPEN",
        "OPEN>ACCEPTED",
        "ACCEPTED>OPEN",
        "OPEN>ACCEPTED",
        "ACCEPTED>SETTLED",
    ]
    sequences = [message.sequence for message in messages]
    assert sequences == sorted(set(sequences))
    assert [message.invoice.sequence for message in messages] == sequences
    assert [message.invoice.preimage for message in messages] == [""] * 5
    assert (await one.get(invoice.invoice_id)).sequence == sequences[-1]


async def test_only_the_caller_s_invoices_are_seen_and_an_operator_sees_all(replica: Any) -> None:
    bobs = replica.accounts.open(BOB)
    async with _watching(replica) as alice, _watching(replica, AS_BOB) as bob, _watching(replica, AS_OPERATOR) as all_:
        for read in (alice, bob, all_):
            await _first(read)
        made = [await replica.create(), await replica.create(AS_BOB, account_id=bobs), await replica.create()]
        ids = [invoice.invoice_id for invoice in made]
        assert [message.invoice.invoice_id for message in await alice(2)] == [ids[0], ids[2]]
        assert [message.invoice.invoice_id for message in await bob(1)] == [ids[1]]
        assert [message.invoice.invoice_id for message in await all_(3)] == ids


async def test_filters_by_account_and_invoice(replica: Any, refused: Any) -> None:
    here, there = replica.accounts.open(ALICE), replica.accounts.open(ALICE)
    async with _watching(replica, account_id=here) as read:
        await _first(read)
        await replica.create(account_id=there)
        wanted = await replica.create(account_id=here)
        assert (await read())[0].invoice.invoice_id == wanted.invoice_id
    for account_id in (replica.accounts.open(BOB), f"customer:{_id()}"):
        stream = replica.invoices.WatchInvoices(pb.WatchInvoicesRequest(account_id=account_id), metadata=AS_ALICE)
        assert await refused(stream.read()) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_one_invoice_begins_with_its_current_state(replica: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    await replica.lock(invoice.payment_request, payment_id)
    other = await replica.create()
    async with _watching(replica, payment_hash=invoice.payment_hash) as read:
        first = await _first(read)
        assert (first.invoice.state, first.previous_state) == (State.STATE_ACCEPTED, 0)
        assert first.sequence >= other.sequence > first.invoice.sequence
        await _pay(replica, other)
        await replica.commit(payment_id)
        assert _story(await read()) == ["ACCEPTED>SETTLED"]
    for metadata, payment_hash in ((AS_BOB, invoice.payment_hash), (AS_ALICE, "00" * 32)):
        stream = replica.invoices.WatchInvoices(pb.WatchInvoicesRequest(payment_hash=payment_hash), metadata=metadata)
        assert await refused(stream.read()) == ("NOT_FOUND", "INVOICE_NOT_FOUND")


async def test_one_invoice_resumed_does_not_repeat_its_state(replica: Any) -> None:
    invoice = await replica.create()
    async with _watching(replica, payment_hash=invoice.payment_hash, resume_after_sequence=0) as read:
        assert _story(await read()) == ["UNSPECIFIED>OPEN"]
        await replica.cancel(invoice.invoice_id)
        assert _story(await read()) == ["OPEN>CANCELED"]


async def test_resuming_over_both_replicas_while_changes_happen_misses_and_repeats_nothing(replicas: Any) -> None:
    generator, done = random.Random(3), asyncio.Event()
    account_id = replicas[0].accounts.open(ALICE)

    async def change() -> int:
        changes = 0
        for _ in range(60):
            invoice = await generator.choice(replicas).create(account_id=account_id)
            await _pay(generator.choice(replicas), invoice)
            changes += 3
        done.set()
        return changes

    seen: list[pb.WatchInvoicesResponse] = []

    async def follow() -> None:
        position = 0
        while True:
            stream = generator.choice(replicas).invoices.WatchInvoices(
                pb.WatchInvoicesRequest(resume_after_sequence=position), metadata=AS_ALICE
            )
            for _ in range(generator.randint(1, 9)):
                try:
                    message = await asyncio.wait_for(stream.read(), 0.5)
                except TimeoutError:
                    break
                assert message.sequence >= position
                position = message.sequence
                if message.HasField("invoice"):
                    seen.append(message)
            stream.cancel()
            if done.is_set() and len(seen) >= 180:
                return

    changes, _ = await asyncio.wait_for(asyncio.gather(change(), follow()), 60)
    sequences = [message.sequence for message in seen]
    assert sequences == sorted(set(sequences)), "in order, nothing twice"
    assert len(seen) == changes
    states: dict[str, int] = {}
    for message in seen:
        assert message.previous_state == states.get(message.invoice.invoice_id, 0), "nothing missing in between"
        states[message.invoice.invoice_id] = message.invoice.state
    assert set(states.values()) == {State.STATE_SETTLED}


async def test_a_drain_ends_the_stream_at_once_and_it_resumes_on_the_other_replica(serve: Any) -> None:
    async with serve("r1") as other:
        async with serve("r0") as replica:
            invoice = await replica.create()
            stream = replica.invoices.WatchInvoices(pb.WatchInvoicesRequest(), metadata=AS_ALICE)
            position = (await stream.read()).sequence
            before_s = asyncio.get_running_loop().time()
            replica.app.draining.set()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stream.read()
            assert asyncio.get_running_loop().time() - before_s < 0.5
            assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVICE_DRAINING")
        await other.cancel(invoice.invoice_id)
        async with _watching(other, resume_after_sequence=position) as read:
            assert _story(await read()) == ["OPEN>CANCELED"]


@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_a_resume_point_that_is_gone_or_never_was_is_refused(replica: Any, refused: Any, tmp_path: Any) -> None:
    for _ in range(3):
        await replica.create()
    with contextlib.closing(apsw.Connection(str(tmp_path / "data" / FILE_NAME))) as connection:
        newest = connection.execute("SELECT max(sequence) FROM storage_event").get
        connection.execute("UPDATE storage_event SET create_time_ms = 0 WHERE sequence < ?", (newest,))
        remove_old_events(connection, KEPT_MS + 1, limit=100)
    for position in (1, newest + 1, 2**63 - 1):
        stream = replica.invoices.WatchInvoices(
            pb.WatchInvoicesRequest(resume_after_sequence=position), metadata=AS_ALICE
        )
        assert await refused(stream.read()) == ("OUT_OF_RANGE", "RESUME_POINT_EXPIRED")
    async with _watching(replica, resume_after_sequence=0) as read:
        assert (await read())[0].sequence == newest


async def test_a_silent_stream_beats_and_says_how_far_it_looked(
    replica: Any, database_settings: dict[str, Any]
) -> None:
    place = place_of(ChassisSettings(**database_settings), FILE_NAME)
    async with await Database.open(place) as database:
        watcher = Watcher(database, replica.app.draining, heartbeat_s=0.05)
        stream = watcher.stream(Watched(owner_pubkey=BOB))
        beats = [await anext(stream)]
        made = await replica.create()
        while beats[-1].sequence < made.sequence:
            beats.append(await anext(stream))
        assert len(beats) < 200
        assert not [beat for beat in beats if beat.HasField("invoice")], "Alice's invoice is none of Bob's business"
        assert [beat.sequence for beat in beats] == sorted(beat.sequence for beat in beats)
        await stream.aclose()


async def test_a_watch_that_its_client_leaves_is_over(replica: Any) -> None:
    busy, watches = 0, 30
    for _ in range(50):  # the background tasks wait in tasks of their own, some of the time
        await asyncio.sleep(0.02)
        busy = max(busy, len(asyncio.all_tasks()))
    for _ in range(watches):
        async with _watching(replica) as read:
            await _first(read)
    for _ in range(100):
        await asyncio.sleep(0.02)
        if len(asyncio.all_tasks()) < busy + watches // 3:
            return
    raise AssertionError([task.get_name() for task in asyncio.all_tasks()])
