"""Hold invoices inside the mesh: a payment reserves, the owner decides or lets the deadline pass, the payment is told."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import secrets
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.errors import reason_of
from services.chassis.testing import as_user
from services.lightning.bolt11 import decode

State = invoice_pb2.Invoice
AS_BOB, AS_OPERATOR = as_user("bb" * 32), as_user("0f" * 32, role="operator")
LOCKED = ("FAILED_PRECONDITION", "INVOICE_LOCKED")
NOT_LOCKED = ("FAILED_PRECONDITION", "INVOICE_NOT_LOCKED")
NOT_ACCEPTED = ("FAILED_PRECONDITION", "INVOICE_NOT_ACCEPTED")
CANCELED = ("FAILED_PRECONDITION", "INVOICE_ALREADY_CANCELED")
SETTLED = ("FAILED_PRECONDITION", "INVOICE_ALREADY_SETTLED")
MISMATCH = ("INVALID_ARGUMENT", "PREIMAGE_MISMATCH")
HOLD = pb.HoldTerms()


def _id() -> str:
    return str(uuid.uuid4())


async def _reserved(replica: Any, **changes: Any) -> tuple[Any, str]:
    """A hold invoice whose payment has reserved its money."""
    invoice, payment_id = await replica.create(**{"hold": HOLD} | changes), _id()
    await replica.lock(invoice.payment_request, payment_id)
    await replica.commit(payment_id)
    return invoice, payment_id


async def test_the_owner_settles_and_the_payment_learns_the_preimage(replicas: Any) -> None:
    one, other = replicas
    invoice, payment_id = await one.create(hold=HOLD), _id()
    assert (invoice.hold, invoice.HasField("accept_time")) == (True, False)
    assert (await one.lock(invoice.payment_request, payment_id)).hold
    committed = await other.commit(payment_id)
    assert (committed.preimage, committed.invoice.state) == ("", State.STATE_ACCEPTED)
    held = await one.get(invoice.invoice_id)
    assert (held.state, held.amount_held_msat, held.payer) == (State.STATE_ACCEPTED, 1_000, State.PAYER_INSIDE)
    assert held.settle_deadline_time.seconds - held.accept_time.seconds == 86_400
    assert (await other.hold(payment_id)).state == pb.GetHoldResponse.STATE_HELD
    settled = (await other.settle(invoice.invoice_id)).invoice
    assert (settled.state, settled.amount_paid_msat, settled.amount_held_msat) == (State.STATE_SETTLED, 1_000, 0)
    assert hashlib.sha256(bytes.fromhex(settled.preimage)).hexdigest() == invoice.payment_hash
    told = await one.hold(payment_id)
    assert (told.state, told.preimage) == (pb.GetHoldResponse.STATE_SETTLED, settled.preimage)
    assert told.settle_time == settled.settle_time
    again = await one.commit(payment_id)
    assert (again.preimage, again.settle_time) == (settled.preimage, settled.settle_time)


async def test_the_owner_cancels_and_the_payment_is_free(replica: Any, refused: Any) -> None:
    invoice, payment_id = await _reserved(replica)
    canceled = (await replica.cancel(invoice.invoice_id)).invoice
    assert (canceled.state, canceled.amount_held_msat, canceled.payer) == (State.STATE_CANCELED, 0, 0)
    assert (await replica.hold(payment_id)).state == pb.GetHoldResponse.STATE_RELEASED
    again = await replica.commit(payment_id)
    assert (again.preimage, again.invoice.state) == ("", State.STATE_CANCELED), "a lost answer is given again"
    assert not (await replica.release(payment_id)).HasField("invoice")
    assert await refused(replica.lock(invoice.payment_request, payment_id)) == NOT_LOCKED
    assert await refused(replica.settle(invoice.invoice_id)) == CANCELED


async def test_an_undecided_invoice_is_canceled_at_its_deadline_and_never_expires(replica: Any) -> None:
    terms = pb.HoldTerms(settle_duration=Duration(seconds=2))
    invoice, payment_id = await _reserved(replica, hold=terms, expiry_duration=Duration(seconds=1))
    held = await replica.get(invoice.invoice_id)
    canceled = await replica.until(invoice.invoice_id, "CANCELED")
    assert canceled.update_time.ToMilliseconds() >= held.settle_deadline_time.ToMilliseconds()
    assert (await replica.hold(payment_id)).state == pb.GetHoldResponse.STATE_RELEASED
    assert replica.accounts.credits.resumed == [payment_id]


async def test_the_waiting_payment_is_told_of_each_decision_once(replica: Any) -> None:
    settled, first = await _reserved(replica)
    canceled, second = await _reserved(replica)
    await replica.settle(settled.invoice_id)
    await replica.settle(settled.invoice_id)
    await replica.cancel(canceled.invoice_id)
    async with asyncio.timeout(10):
        while len(replica.accounts.credits.resumed) < 2:
            await asyncio.sleep(0.01)
    assert replica.accounts.credits.resumed == [first, second]


async def test_before_the_commit_the_owner_decides_nothing_and_after_it_the_payment_nothing(
    replica: Any, refused: Any
) -> None:
    invoice, payment_id = await replica.create(hold=HOLD), _id()
    assert await refused(replica.settle(invoice.invoice_id)) == NOT_ACCEPTED
    await replica.lock(invoice.payment_request, payment_id)
    assert await refused(replica.settle(invoice.invoice_id)) == NOT_ACCEPTED
    assert await refused(replica.cancel(invoice.invoice_id)) == LOCKED
    await replica.commit(payment_id)
    assert await refused(replica.release(payment_id)) == LOCKED
    assert await refused(replica.lock(invoice.payment_request, _id())) == LOCKED
    await replica.settle(invoice.invoice_id)
    assert await refused(replica.release(payment_id)) == SETTLED
    assert await refused(replica.cancel(invoice.invoice_id)) == SETTLED


async def test_a_payment_may_let_go_of_a_hold_invoice_before_the_commit(replica: Any) -> None:
    invoice, payment_id = await replica.create(hold=HOLD), _id()
    await replica.lock(invoice.payment_request, payment_id)
    assert (await replica.release(payment_id)).invoice.state == State.STATE_OPEN
    await replica.lock(invoice.payment_request, other := _id())
    await replica.commit(other)
    assert (await replica.settle(invoice.invoice_id)).invoice.state == State.STATE_SETTLED


async def test_whoever_keeps_the_preimage_settles_with_it(replica: Any, refused: Any) -> None:
    preimage = secrets.token_bytes(32)
    payment_hash = hashlib.sha256(preimage).hexdigest()
    invoice, payment_id = await _reserved(replica, hold=pb.HoldTerms(payment_hash=payment_hash))
    assert decode(invoice.payment_request).payment_hash == invoice.payment_hash == payment_hash
    assert await refused(replica.settle(invoice.invoice_id)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")
    wrong = replica.settle(invoice.invoice_id, preimage="00" * 32)
    assert await refused(wrong) == MISMATCH
    assert (await replica.hold(payment_id)).state == pb.GetHoldResponse.STATE_HELD
    settled = (await replica.settle(invoice.invoice_id, preimage=preimage.hex())).invoice
    assert settled.preimage == preimage.hex() == (await replica.hold(payment_id)).preimage
    assert (await replica.settle(invoice.invoice_id, preimage=preimage.hex())).invoice == settled
    assert await refused(replica.settle(invoice.invoice_id, preimage="00" * 32)) == MISMATCH


async def test_a_hash_has_one_invoice_whoever_brings_it(replica: Any, refused: Any) -> None:
    terms = pb.HoldTerms(payment_hash=secrets.token_hex(32))
    request = replica.creation(hold=terms)
    first = await replica.invoices.CreateInvoice(request, metadata=as_user("aa" * 32))
    again = await replica.invoices.CreateInvoice(request, metadata=as_user("aa" * 32))
    assert (again.replayed, again.invoice) == (True, first.invoice)
    bobs = replica.accounts.open("bb" * 32)
    for call in (replica.create(hold=terms), replica.create(AS_BOB, hold=terms, account_id=bobs)):
        assert await refused(call) == ("ALREADY_EXISTS", "PAYMENT_HASH_USED")


async def test_of_sixteen_creations_with_one_hash_over_two_replicas_one_wins(replicas: Any) -> None:
    terms, account_id = pb.HoldTerms(payment_hash=secrets.token_hex(32)), replicas[0].accounts.open("aa" * 32)

    async def create(at: int) -> str:
        try:
            await replicas[at % 2].create(hold=terms, account_id=account_id)
        except grpc.aio.AioRpcError as error:
            return str(reason_of(error))
        return "won"

    outcomes = collections.Counter(await asyncio.gather(*(create(at) for at in range(16))))
    assert outcomes == {"won": 1, "PAYMENT_HASH_USED": 15}


async def test_decisions_are_the_owner_s_and_repeat(replica: Any, refused: Any) -> None:
    invoice, _ = await _reserved(replica)
    for metadata in (AS_BOB, AS_OPERATOR):
        for call in (replica.settle(invoice.invoice_id, metadata), replica.cancel(invoice.invoice_id, metadata)):
            assert await refused(call) == ("NOT_FOUND", "INVOICE_NOT_FOUND")
    request_id = _id()
    first = await replica.settle(invoice.invoice_id, request_id=request_id)
    again = await replica.settle(invoice.invoice_id, request_id=request_id)
    assert ([first.replayed, again.replayed], again.invoice) == ([False, True], first.invoice)
    reused = replica.settle(invoice.invoice_id, request_id=request_id, preimage="00" * 32)
    assert await refused(reused) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


@pytest.mark.parametrize("round_", range(3))
async def test_settle_and_cancel_race_over_two_replicas_and_one_wins(replicas: Any, round_: int) -> None:
    invoice, payment_id = await _reserved(replicas[0])

    async def decide(at: int) -> str:
        replica, settles = replicas[at % 2], at % 4 < 2
        try:
            await (replica.settle if settles else replica.cancel)(invoice.invoice_id)
        except grpc.aio.AioRpcError as error:
            return str(reason_of(error))
        return "settled" if settles else "canceled"

    outcomes = set(await asyncio.gather(*(decide(at) for at in range(12))))
    state, hold = (await replicas[1].get(invoice.invoice_id)).state, (await replicas[0].hold(payment_id)).state
    if "settled" in outcomes:
        assert outcomes == {"settled", "INVOICE_ALREADY_SETTLED"}
        assert (state, hold) == (State.STATE_SETTLED, pb.GetHoldResponse.STATE_SETTLED)
    else:
        assert outcomes == {"canceled", "INVOICE_ALREADY_CANCELED"}
        assert (state, hold) == (State.STATE_CANCELED, pb.GetHoldResponse.STATE_RELEASED)


async def test_an_invoice_that_is_no_hold_invoice_is_not_its_owner_s_to_settle(replica: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    assert await refused(replica.settle(invoice.invoice_id)) == NOT_ACCEPTED
    await replica.lock(invoice.payment_request, payment_id)
    assert await refused(replica.settle(invoice.invoice_id)) == NOT_ACCEPTED
    await replica.commit(payment_id)
    paid = await replica.get(invoice.invoice_id)
    assert (paid.payer, paid.HasField("accept_time")) == (State.PAYER_INSIDE, False)
    assert (await replica.settle(invoice.invoice_id)).invoice == paid, "settled already: success"


async def test_watchers_see_when_the_owner_may_decide_and_what_they_decide(replica: Any) -> None:
    invoice, _ = await _reserved(replica, metadata={"order": "7"})
    await replica.settle(invoice.invoice_id)
    request = pb.WatchInvoicesRequest(resume_after_sequence=0, payment_hash=invoice.payment_hash)
    stream, story = replica.invoices.WatchInvoices(request, metadata=as_user("aa" * 32)), []
    while len(story) < 4:
        message = await asyncio.wait_for(stream.read(), 10)
        if message.HasField("invoice"):
            seen = message.invoice
            story.append((message.previous_state, seen.state, seen.HasField("accept_time")))
            assert (seen.preimage, dict(seen.metadata)) == ("", {})
    stream.cancel()
    assert story == [(0, 1, False), (1, 2, False), (2, 2, True), (2, 3, True)]


async def test_metadata_is_for_the_owner_alone(replica: Any) -> None:
    words = {"order": "7", "ключ": "\x01\n<script>", "empty": ""}
    invoice = await replica.create(metadata=words)
    assert dict(invoice.metadata) == words
    assert dict((await replica.get(invoice.invoice_id)).metadata) == words
    assert dict((await replica.get(invoice.invoice_id, AS_OPERATOR)).metadata) == {}
    listing = pb.ListInvoicesRequest()
    for metadata, seen in ((as_user("aa" * 32), words), (AS_OPERATOR, {})):
        response = await replica.invoices.ListInvoices(listing, metadata=metadata)
        assert dict(response.invoices[0].metadata) == seen
    assert decode(invoice.payment_request).metadata is None


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"": "x"}},
        {"metadata": {"k" * 41: "x"}},
        {"metadata": {"k": "x" * 257}},
        {"metadata": {str(at): "x" for at in range(17)}},
        {"hold": pb.HoldTerms(payment_hash="EF" * 32)},
        {"hold": pb.HoldTerms(settle_duration=Duration(seconds=0))},
        {"hold": pb.HoldTerms(settle_duration=Duration(seconds=2_592_001))},
    ],
    ids=str,
)
async def test_what_is_out_of_bounds_is_refused(replica: Any, refused: Any, changes: dict[str, Any]) -> None:
    assert await refused(replica.create(**changes)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")
