"""GetPayment through the cache: it is seen as it is, by whoever may see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import apsw
import grpc
import pytest

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.testing import as_user
from support.folders import short_folder
from support.payment_mesh import refused
from support.payment_service import ALICE, BOB, DESK, EVE, Metadata, Service, serving
from support.valkey import Valkey, running_valkey

UNTOLD: Final = """
    CREATE TRIGGER untold BEFORE UPDATE ON payment WHEN NEW.sequence <= OLD.sequence OR NOT EXISTS (
        SELECT 1 FROM storage_event WHERE sequence = NEW.sequence AND subject = NEW.payment_id
    ) BEGIN SELECT RAISE(ABORT, 'a payment changes without an event'); END
"""
"""What the cache relies on, enforced by the database itself."""
NEWEST: Final = """
    SELECT payment.sequence = (SELECT max(sequence) FROM storage_event WHERE subject = payment_id) FROM payment
"""


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture
async def cached(valkey: Valkey, folder: Path) -> AsyncIterator[Service]:
    async with serving(folder, cache_url=valkey.url) as running:
        yield running


async def get(service: Service, payment_id: str, metadata: Metadata, *, full: bool = False) -> payment_pb2.Payment:
    view = pb.PAYMENT_VIEW_FULL if full else pb.PAYMENT_VIEW_UNSPECIFIED
    request = pb.GetPaymentRequest(payment_id=payment_id, view=view)
    return (await service.payments.GetPayment(request, metadata=metadata)).payment


async def fill(service: Service, payment_id: str, valkey: Valkey) -> None:
    """Read a payment until it lies in the cache."""
    async with asyncio.timeout(60):
        while not any(name.endswith(payment_id) for name in valkey.dump()):
            await get(service, payment_id, DESK)
            await asyncio.sleep(0.01)


async def test_a_refund_is_seen_at_once(cached: Service, valkey: Valkey) -> None:
    payer, payee = await cached.open(ALICE, 10_000), await cached.open(BOB)
    payment = await cached.pay(ALICE, payer, cached.settlement.create(payee, 1_000))
    for refunded_msat in (300, 700, 1_000):
        await fill(cached, payment.payment_id, valkey)
        before = await get(cached, payment.payment_id, as_user(ALICE))
        await cached.refund(as_user(BOB), payment.payment_id, amount_msat=refunded_msat - before.refunded_msat)
        after = await get(cached, payment.payment_id, as_user(ALICE))
        assert after.refunded_msat == refunded_msat
        assert after.sequence > before.sequence
    assert after.state == payment_pb2.Payment.STATE_REFUNDED


async def test_who_may_see_it_does_not_depend_on_the_cache(cached: Service, valkey: Valkey) -> None:
    payer, payee = await cached.open(ALICE, 10_000), await cached.open(BOB)
    payment = await cached.pay(ALICE, payer, cached.settlement.create(payee, 1_000))
    await fill(cached, payment.payment_id, valkey)
    for user in (BOB, EVE):
        answer = await refused(get(cached, payment.payment_id, as_user(user)))
        assert answer == (grpc.StatusCode.NOT_FOUND, "PAYMENT_NOT_FOUND")
    assert await get(cached, payment.payment_id, as_user(ALICE)) == payment
    assert await get(cached, payment.payment_id, DESK) == payment
    full = await get(cached, payment.payment_id, as_user(ALICE), full=True)
    assert full.steps
    assert payment.preimage
    assert not any(payment.preimage.encode() in sealed for sealed in valkey.dump().values())


async def test_each_change_of_a_payment_has_an_event_about_it(cached: Service, folder: Path) -> None:
    with contextlib.closing(apsw.Connection(str(folder / "data" / "payment.sqlite3"))) as rows:
        rows.set_busy_timeout(10_000)
        rows.execute(UNTOLD)
        payer, payee = await cached.open(ALICE, 10_000), await cached.open(BOB)
        payment = await cached.pay(ALICE, payer, cached.settlement.create(payee, 1_000))
        await cached.refund(as_user(BOB), payment.payment_id, amount_msat=10)
        short = await refused(cached.pay(ALICE, payer, cached.settlement.create(payee, 1_000_000)))
        assert short[1] == "INSUFFICIENT_BALANCE", "a FAILED payment is recorded"
        assert rows.execute(NEWEST).fetchall() == [(True,), (True,)]
        with pytest.raises(apsw.ConstraintError, match="without an event"):
            rows.execute("UPDATE payment SET refunded_msat = refunded_msat + 1")
