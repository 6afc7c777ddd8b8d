"""Receipts of settled zaps over a real database and real relays: one for each invoice, brought to each relay until it answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from websockets.asyncio.server import ServerConnection

from nipmesh.events.v1.events_pb2 import InvoiceChanged
from nipmesh.events.v1.nip_events_pb2 import ZapReceiptMade, ZapReceiptPublished
from nipmesh.invoice.v1.invoice_pb2 import Invoice
from services.chassis.secret import SecretBytes
from services.nip.zaps import store
from services.nip.zaps.publishing import Answer, Attempt, Publisher, cleaned, retry_ms, retry_ms_min
from services.nip.zaps.receipts import Receipts, ZapKey, open_zap_key
from services.nip.zaps.relay_call import RelayCaller, relay_options
from services.nip.zaps.store import GIVE_UP_MS, LEASE_MS, State
from services.nostr.bip340 import Signer
from services.nostr.event_json import event_of_json
from services.relays import RelayPool
from services.storage.events import events_after
from support.relay import local_relay, scripted_relay, stored
from support.zaps import RECIPIENT, SENDER, zap_text

SETTLED = 1_700_000_500
KEY = ZapKey(signer=Signer(SecretBytes(b"\x0b" * 32)), auxiliary_key=b"\x01" * 32)
Start = Callable[[], Awaitable[Any]]


class Now:
    """A clock in milliseconds that stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = SETTLED * 1_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def relay() -> AsyncIterator[str]:
    async with local_relay() as url:
        yield url


def settled(*relays: str, invoice_id: str = "invoice-1", zap_request: str | None = None) -> InvoiceChanged:
    """The event of a settled invoice."""
    text = zap_text(relays=relays) if zap_request is None else zap_request
    invoice = Invoice(
        invoice_id=invoice_id,
        state=Invoice.STATE_SETTLED,
        payment_request=f"lnbcrt1{invoice_id}",
        settle_time=Timestamp(seconds=SETTLED, nanos=5),
        zap_request=text,
    )
    return InvoiceChanged(invoice=invoice, owner_pubkey="aa" * 32)


async def make(parts: Any, changed: InvoiceChanged, now: Now, relays_max: int = 10) -> None:
    """As the consumer does."""
    receipts = Receipts(KEY, relays_max, clock=now)
    await parts.database.write(lambda connection: receipts.on_settled(connection, changed))


async def found(parts: Any, invoice_id: str = "invoice-1") -> Any:
    return await parts.database.read(lambda connection: store.find_receipt(connection, invoice_id))


def publisher(parts: Any, now: Now, caller: Any) -> Publisher:
    return Publisher(parts.database, caller, clock=now)


@pytest.fixture
async def caller() -> AsyncIterator[RelayCaller]:
    """As the service has it, where relays may be on this host."""
    async with RelayPool(replace(relay_options(KEY, private=True), publish_timeout_s=1, backoff_s_max=0.2)) as pool:
        yield RelayCaller(pool)


async def told(parts: Any) -> list[tuple[str, Any]]:
    """The events of the database, unpacked."""
    kinds = {"zap_receipt_made": ZapReceiptMade, "zap_receipt_published": ZapReceiptPublished}
    events = await parts.database.read(lambda connection: events_after(connection, 0))
    return [
        (event.kind.rpartition(".")[2], kinds[event.kind.rpartition(".")[2]].FromString(event.payload))
        for event in events
    ]


async def test_a_settled_zap_comes_to_its_relay(parts: Any, now: Now, relay: str, caller: RelayCaller) -> None:
    await make(parts, settled(relay), now)
    assert await publisher(parts, now, caller).publish_due() == 1
    (event,) = await stored(relay, kinds=[9735])
    receipt, (publication,) = await found(parts)
    assert event_of_json(json.dumps(event)) == receipt.event
    assert event["created_at"] == SETTLED
    assert ["p", RECIPIENT] in event["tags"]
    assert ["P", SENDER.public_key.hex()] in event["tags"]
    assert (publication.state, publication.attempts, publication.next_run_ms) == (State.ACCEPTED, 1, None)
    (first, made), (second, published) = await told(parts)
    assert (first, made.receipt.id, list(made.relay_urls)) == ("zap_receipt_made", event["id"], [relay])
    assert (second, published.outcome) == ("zap_receipt_published", ZapReceiptPublished.OUTCOME_ACCEPTED)
    assert await publisher(parts, now, caller).publish_due() == 0


async def test_the_same_invoice_again_makes_nothing_new(parts: Any, now: Now) -> None:
    await make(parts, settled("ws://127.0.0.1:9"), now)
    first = await found(parts)
    now.ms += 5_000
    await make(parts, settled("ws://127.0.0.1:9"), now)
    assert await found(parts) == first
    assert len(await told(parts)) == 1


async def test_what_is_no_zap_has_no_receipt(parts: Any, now: Now) -> None:
    await make(parts, settled(zap_request=""), now)
    await make(parts, settled(zap_request="{}"), now)
    assert await found(parts) is None
    assert await told(parts) == []


async def test_only_so_many_relays_of_those_that_are_named(parts: Any, now: Now) -> None:
    urls = [f"wss://r{number}.example.com" for number in range(7)]
    await make(parts, settled(*urls), now, relays_max=3)
    assert [each.relay_url for each in (await found(parts))[1]] == urls[:3]


async def test_two_replicas_share_the_work(start: Start, now: Now, relay: str, caller: RelayCaller) -> None:
    first, second = await start(), await start()
    for number in range(20):
        await make(first, settled(relay, invoice_id=f"invoice-{number}"), now)
    counts = await asyncio.gather(
        publisher(first, now, caller).publish_due(), publisher(second, now, caller).publish_due()
    )
    assert sum(counts) == 20
    assert len(await stored(relay, kinds=[9735])) == 20


async def test_a_dead_replicas_claim_is_another_ones_after_the_lease(
    start: Start, now: Now, relay: str, caller: RelayCaller
) -> None:
    first, second = await start(), await start()
    await make(first, settled(relay), now)
    claimed = await first.database.write(lambda connection: store.claim(connection, now.ms, limit=9))
    assert len(claimed) == 1
    assert await publisher(second, now, caller).publish_due() == 0
    now.ms += LEASE_MS
    assert await publisher(second, now, caller).publish_due() == 1
    late = claimed[0]
    stale = await first.database.write(lambda connection: store.finish(connection, late, State.REFUSED, None, "late"))
    assert not stale, "whose lease is over does not decide any more"
    assert (await found(second))[1][0].state is State.ACCEPTED


async def test_a_relay_that_is_away_gets_it_when_it_is_back(
    parts: Any, now: Now, unused_tcp_port: int, caller: RelayCaller
) -> None:
    url = f"ws://127.0.0.1:{unused_tcp_port}"
    await make(parts, settled(url), now)
    for attempts in range(1, 4):
        assert await publisher(parts, now, caller).publish_due() == 1
        _, (publication,) = await found(parts)
        assert (publication.state, publication.attempts) == (State.PENDING, attempts)
        assert publication.problem
        assert retry_ms_min(attempts) <= publication.next_run_ms - now.ms <= retry_ms_min(attempts) * 3 / 2
        now.ms = publication.next_run_ms
    async with local_relay(port=unused_tcp_port):
        assert await publisher(parts, now, caller).publish_due() == 1
        assert len(await stored(url, kinds=[9735])) == 1


async def test_a_relay_that_never_answers_is_given_up_after_a_day(parts: Any, now: Now) -> None:
    class Away:
        async def publish(self, event: Any, relay_url: str) -> Attempt:
            return Attempt(answer=Answer.LATER, problem="away\n\x00" + "x" * 300)

    await make(parts, settled("wss://away.example.com"), now)
    begun = now.ms
    while (publication := (await found(parts))[1][0]).state is State.PENDING:
        now.ms = publication.next_run_ms
        await publisher(parts, now, Away()).publish_due()
    assert publication.state is State.GIVEN_UP
    assert now.ms - begun <= GIVE_UP_MS
    assert publication.attempts > 20
    assert publication.problem == cleaned("away  " + "x" * 300)
    assert (await told(parts))[-1][1].outcome == ZapReceiptPublished.OUTCOME_GIVEN_UP


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ([True, ""], State.ACCEPTED),
        ([False, "duplicate: have it"], State.ACCEPTED),
        ([False, "blocked: not you"], State.REFUSED),
        ([False, "invalid: no"], State.REFUSED),
        ([False, "pow: 28 bits"], State.REFUSED),
        ([False, "restricted: no"], State.REFUSED),
        ([False, "rate-limited: slow down"], State.PENDING),
        ([False, "error: disk"], State.PENDING),
        ([False, "auth-required: but no challenge"], State.PENDING),
        ([False, ""], State.PENDING),
        (["yes", ""], State.PENDING),
    ],
)
async def test_what_a_relay_may_answer(
    parts: Any, now: Now, answer: list[Any], state: State, caller: RelayCaller
) -> None:
    async def say(connection: ServerConnection, message: list[Any]) -> None:
        for noise in ("no json", '{"a":1}', "[]", '["OK"]', '["OK",1,true,""]', '["NOTICE","hello"]'):
            await connection.send(noise)
        await connection.send(json.dumps(["OK", "00" * 32, False, "blocked: another event"]))
        await connection.send(json.dumps(["OK", message[1]["id"], *answer]))

    async with scripted_relay(say) as url:
        await make(parts, settled(url), now)
        await publisher(parts, now, caller).publish_due()
    assert (await found(parts))[1][0].state is state


async def test_a_relay_that_wants_to_know_who_publishes_is_told(parts: Any, now: Now, caller: RelayCaller) -> None:
    async with local_relay(nip42=True) as url:
        await make(parts, settled(url), now)
        await publisher(parts, now, caller).publish_due()
    assert (await found(parts))[1][0].state is State.ACCEPTED


@pytest.mark.parametrize("behaviour", ["talks", "large", "closes"])
async def test_a_relay_cannot_hold_anybody_up(parts: Any, now: Now, behaviour: str, caller: RelayCaller) -> None:
    async def say(connection: ServerConnection, message: list[Any]) -> None:
        if behaviour == "talks":
            for _ in range(100):
                await connection.send('["NOTICE","on and on"]')
        elif behaviour == "large":
            await connection.send(json.dumps(["NOTICE", "x" * 200_000]))
        else:
            await connection.close()

    async with scripted_relay(say) as url:
        await make(parts, settled(url), now)
        async with asyncio.timeout(5):
            await publisher(parts, now, caller).publish_due()
    _, (publication,) = await found(parts)
    assert publication.state is State.PENDING
    assert publication.problem


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_strangers_cannot_have_the_own_network_called(parts: Any, now: Now, host: str) -> None:
    heard: list[Any] = []

    async def say(connection: ServerConnection, message: list[Any]) -> None:
        heard.append(message)

    async with scripted_relay(say) as url, RelayPool(relay_options(KEY, private=False)) as pool:
        await make(parts, settled(url.replace("127.0.0.1", host)), now)
        await publisher(parts, now, RelayCaller(pool)).publish_due()
    _, (publication,) = await found(parts)
    assert publication.state is State.PENDING
    assert "private" in publication.problem
    assert heard == []


def test_pauses_grow_to_an_hour_and_differ() -> None:
    pauses = [retry_ms_min(attempts) for attempts in range(1, 40)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2_000, 3_600_000)
    assert len({retry_ms(20) for _ in range(20)}) > 1


async def test_replicas_that_start_at_once_make_one_key(start: Start) -> None:
    replicas = [await start() for _ in range(3)]
    owner = "spiffe://nip.mesh/service/nip"
    keys = await asyncio.gather(*(open_zap_key(parts.keys, owner, b"\x01" * 32) for parts in replicas))
    assert len({key.pubkey for key in keys}) == 1
    again = await open_zap_key(replicas[0].keys, owner, b"\x01" * 32)
    assert again.pubkey == keys[0].pubkey
