"""GetInvoice through the cache: by two replicas, for whoever may see it, while it changes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.testing import as_user
from support.valkey import Valkey, running_valkey

ALICE, BOB, OPERATOR = as_user("aa" * 32), as_user("bb" * 32), as_user("0f" * 32, role="operator")
Replicas = tuple[Any, Any]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
async def cached(valkey: Valkey, secrets_of_invoice: dict[str, Any], serve: Any) -> AsyncIterator[Replicas]:
    """Two replicas with a cache."""
    secrets_of_invoice["cache_url"] = valkey.url
    async with serve("r0") as one, serve("r1") as other:
        yield one, other


def outcomes(replica: Any, outcome: str) -> float:
    labels = {"kind": "invoice", "outcome": outcome}
    return replica.app.registry.get_sample_value("nipmesh_cache_reads_total", labels) or 0.0


async def hit(replica: Any, get: Callable[[], Awaitable[invoice_pb2.Invoice]]) -> invoice_pb2.Invoice:
    """Read until the cache answers."""
    before = outcomes(replica, "hit")
    async with asyncio.timeout(60):
        while True:
            invoice = await get()
            if outcomes(replica, "hit") > before:
                return invoice
            await asyncio.sleep(0.01)


async def test_the_other_replicas_change_is_seen_at_once(cached: Replicas) -> None:
    one, other = cached
    invoice = await one.create(metadata={"order": "7"})
    assert await hit(one, lambda: one.get(invoice.invoice_id)) == invoice
    assert await hit(other, lambda: other.get(invoice.invoice_id)) == invoice
    canceled = (await other.cancel(invoice.invoice_id)).invoice
    assert canceled.state == invoice_pb2.Invoice.STATE_CANCELED
    assert await one.get(invoice.invoice_id) == await other.get(invoice.invoice_id) == canceled
    assert await hit(one, lambda: one.get(invoice.invoice_id)) == canceled


async def test_who_may_see_what_does_not_depend_on_the_cache(
    cached: Replicas, refused: Callable[[Any], Any], valkey: Valkey
) -> None:
    one, other = cached
    invoice, payment_id = await one.create(metadata={"order": "7"}), str(uuid.uuid4())
    await one.lock(invoice.payment_request, payment_id)
    await one.commit(payment_id)
    paid = await one.until(invoice.invoice_id, "SETTLED")
    assert paid.preimage
    assert await hit(other, lambda: other.get(invoice.invoice_id)) == paid
    for replica in cached:
        shown = await hit(replica, lambda: replica.get(invoice.invoice_id, OPERATOR))  # noqa: B023  # awaited here
        assert (shown.preimage, dict(shown.metadata)) == ("", {})
        assert (shown.state, shown.sequence) == (paid.state, paid.sequence)
        request = pb.GetInvoiceRequest(invoice_id=invoice.invoice_id)
        hits = outcomes(replica, "hit")
        answer = await refused(replica.invoices.GetInvoice(request, metadata=BOB))
        assert answer == ("NOT_FOUND", "INVOICE_NOT_FOUND")
        assert outcomes(replica, "hit") == hits + 1, "that it is in the cache opens it to nobody"
        assert await replica.get(invoice.invoice_id) == paid
    secrets = (bytes.fromhex(paid.preimage), paid.preimage.encode(), b"order", paid.payment_request.encode())
    for sealed in valkey.dump().values():
        assert not any(secret in sealed for secret in secrets)


async def test_a_payment_is_seen_at_each_of_its_steps_whoever_asks(cached: Replicas) -> None:
    one, other = cached
    invoice, payment_id = await one.create(), str(uuid.uuid4())
    for step, state in (
        (one.lock(invoice.payment_request, payment_id), "ACCEPTED"),
        (other.release(payment_id), "OPEN"),
        (other.lock(invoice.payment_request, str(uuid.uuid4())), "ACCEPTED"),
    ):
        await hit(one, lambda: one.get(invoice.invoice_id))
        await hit(other, lambda: other.get(invoice.invoice_id))
        await step
        wanted = invoice_pb2.Invoice.State.Value(f"STATE_{state}")
        assert [(await replica.get(invoice.invoice_id)).state for replica in cached] == [wanted, wanted]
